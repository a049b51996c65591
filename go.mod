module github.com/interprocess-go/ipc

go 1.25
