package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
)

// ipccat returns the example of that name as a child that is yet to start. CI
// builds it: there is no go command where these tests run.
func ipccat(t *testing.T, input string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	program := os.Getenv("IPCCAT")
	if program == "" {
		t.Skip("IPCCAT does not name the program")
	}
	cmd := exec.Command(program, args...)
	out := new(bytes.Buffer)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewBufferString(input), out, os.Stderr
	return cmd, out
}

func TestTheirClientTalksToIpccat(t *testing.T) {
	guard(t)
	path := freshAddress("ipccat")
	server, out := ipccat(t, "from ipccat\n", "-l", path)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	var client net.Conn
	for end := time.Now().Add(soon); ; time.Sleep(time.Millisecond) {
		var err error
		if client, err = winio.DialPipe(path, nil); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(client, "from their client\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("from ipccat\n"))
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "from ipccat\n" {
		t.Errorf("%q, %v", got, err)
	}
	client.Close()
	if err := server.Wait(); err != nil || out.String() != "from their client\n" {
		t.Errorf("ipccat printed %q and ended with %v", out, err)
	}
}

func TestIpccatTalksToTheirListener(t *testing.T) {
	guard(t)
	path := freshAddress("ipccat")
	client, out := ipccat(t, "from ipccat\n", "-everyone", path)
	l, err := winio.ListenPipe(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	holdFirstInstance(path)
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("from ipccat\n"))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "from ipccat\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := io.WriteString(server, "from their listener\n"); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if err := client.Wait(); err != nil || out.String() != "from their listener\n" {
		t.Errorf("ipccat printed %q and ended with %v", out, err)
	}
}
