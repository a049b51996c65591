package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// beProgram makes the test binary run the program instead of the tests.
const beProgram = "FRAMES_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Setenv(beProgram, "1") // for the children
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

func watch(t *testing.T) {
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	dog := time.AfterFunc(2*time.Minute, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
}

func TestFramesArriveEitherWay(t *testing.T) {
	watch(t)
	for _, p := range []plan{
		{frames: 20, size: 4 << 20},
		{frames: 30, size: 100_001},
		{frames: 5, rate: 1000, size: 8},
	} {
		var table bytes.Buffer
		if err := compare(&table, p); err != nil {
			t.Fatal(err)
		}
		t.Logf("\n%s", &table)
		if lines := strings.Count(table.String(), "\n"); lines != 4 {
			t.Errorf("the table has %d lines", lines)
		}
	}
}

// The words of the two processes need not have the same size.
func TestConsumerOfAnotherWordSize(t *testing.T) {
	watch(t)
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		t.Skip("this machine need not run programs of 32 bits")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no toolchain is at hand to build one: ", err)
	}
	consumer := filepath.Join(t.TempDir(), "frames32.exe")
	build := exec.Command("go", "build", "-o", consumer, ".")
	build.Env = append(os.Environ(), "GOARCH=386", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("it is not built: %v\n%s", err, out)
	}
	if out, err := exec.Command(consumer, "-h").CombinedOutput(); !bytes.Contains(out, []byte("-consumer")) {
		t.Skipf("this system does not run programs of 32 bits: %v", err)
	}
	var table bytes.Buffer
	if err := compare(&table, plan{frames: 20, size: 1 << 20, consumer: consumer}); err != nil {
		t.Fatal(err)
	}
}
