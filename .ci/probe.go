// Probe says whether programs like it run here: see probe386 in run. It uses what an emulator may not have: threads,
// the signals that preempt goroutines, and the garbage collector.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

func main() {
	runtime.GOMAXPROCS(4)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			runtime.LockOSThread()
			var keep [][]byte
			for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
				keep = append(keep, make([]byte, 4096))
				if len(keep) == 1000 {
					keep = nil
				}
			}
		})
	}
	runtime.GC()
	wg.Wait()
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go w.Write([]byte("ok"))
	b := make([]byte, 2)
	if _, err := r.Read(b); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("probe: %s\n", b)
}
