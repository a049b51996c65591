package ipc_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/user"

	"github.com/interprocess-go/ipc"
)

// A pipe of messages that this user serves, and the local users may use.
func ExampleListenPipe() {
	me, err := user.Current()
	if err != nil {
		log.Fatal(err)
	}
	const users = "S-1-5-32-545" // BUILTIN\Users
	security, err := ipc.NewSecurityDescriptor(
		ipc.AccessEntry{SID: me.Uid, Mask: ipc.ServerRights},
		ipc.AccessEntry{SID: users, Mask: ipc.ClientRights},
	)
	if err != nil {
		log.Fatal(err)
	}
	path := fmt.Sprintf(`\\.\pipe\example-%d`, os.Getpid())
	l, err := ipc.ListenPipe(path, ipc.PipeConfig{Messages: true, Security: security})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	go func() {
		conn, err := l.AcceptPipe()
		if err != nil {
			log.Fatal(err)
		}
		defer conn.Close()
		request := make([]byte, 100)
		n, _, err := conn.ReadMessage(request)
		if err != nil {
			log.Fatal(err)
		}
		if err := conn.WriteMessage(append([]byte("re: "), request[:n]...)); err != nil {
			log.Fatal(err)
		}
		conn.Flush(context.Background()) // until the client has read it
	}()

	conn, err := ipc.DialPipe(context.Background(), path, ipc.PipeDialer{Messages: true})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 100)
	n, err := conn.Transact(context.Background(), []byte("the weather"), answer)
	fmt.Printf("%s, %v\n", answer[:n], err)
	// Output: re: the weather, <nil>
}

func ExampleParseSDDL() {
	security, err := ipc.ParseSDDL("O:SYD:P(A;;GA;;;SY)(A;;0x12019b;;;BU)")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(security)
	_, err = ipc.ParseSDDL("D:(A;;GA;;nobody)")
	fmt.Println(err != nil)
	// Output:
	// O:SYD:P(A;;GA;;;SY)(A;;0x12019b;;;BU)
	// true
}
