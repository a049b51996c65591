// Grpc serves gRPC on a local socket. The credentials of its transport are the kernel's:
// a handler finds the ipc.Peer of its caller in the AuthInfo of the call, and needs no
// certificate. Try
//
//	go run . -serve @greeter &
//	go run . -call @greeter
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/interprocess-go/ipc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// peerCredentials are transport credentials for connections of package ipc. The kernel
// keeps others out of what is sent, so nothing is encrypted.
type peerCredentials struct{}

// A peerInfo is the credentials.AuthInfo of a connection.
type peerInfo struct {
	credentials.CommonAuthInfo
	Peer ipc.Peer
}

func (peerInfo) AuthType() string { return "ipc" }

func (peerCredentials) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(c)
}

func (peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(c)
}

func handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := c.(*ipc.Conn)
	if !ok {
		return nil, nil, errors.New("not a connection of package ipc")
	}
	p, err := conn.Peer()
	if err != nil {
		return nil, nil, err
	}
	level := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return c, peerInfo{level, p}, nil
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "ipc"}
}
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }
func (peerCredentials) OverrideServerName(string) error           { return nil }

// caller returns who calls.
func caller(ctx context.Context) (ipc.Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ipc.Peer{}, false
	}
	info, ok := p.AuthInfo.(peerInfo)
	return info.Peer, ok
}

// newServer returns a server of the health service, which tells log of each caller.
func newServer(log func(ipc.Peer)) *grpc.Server {
	s := grpc.NewServer(grpc.Creds(peerCredentials{}), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if p, ok := caller(ctx); ok {
				log(p)
			}
			return handler(ctx, req)
		}))
	healthpb.RegisterHealthServer(s, health.NewServer())
	return s
}

// newClient returns a client of the server at addr. The target is for gRPC's own eyes;
// "passthrough" keeps it from looking for a name.
func newClient(addr ipc.Addr) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///ipc", grpc.WithTransportCredentials(peerCredentials{}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return ipc.Dialer{}.DialContext(ctx, addr)
		}))
}

// call asks the server how it is.
func call(ctx context.Context, addr ipc.Addr) (string, error) {
	client, err := newClient(addr)
	if err != nil {
		return "", err
	}
	defer client.Close()
	answer, err := healthpb.NewHealthClient(client).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return "", err
	}
	return answer.Status.String(), nil
}

func main() {
	var serveAt, callAt ipc.Addr
	flag.TextVar(&serveAt, "serve", ipc.Addr{}, "be the server, at `address`")
	flag.TextVar(&callAt, "call", ipc.Addr{}, "call the server at `address`")
	flag.Parse()
	switch none := (ipc.Addr{}); {
	case serveAt != none:
		l, err := ipc.Listen(serveAt)
		if err != nil {
			log.Fatal(err)
		}
		log.Fatal(newServer(func(p ipc.Peer) { log.Print("a call of ", p) }).Serve(l))
	case callAt != none:
		status, err := call(context.Background(), callAt)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(status)
	default:
		flag.Usage()
		os.Exit(2)
	}
}
