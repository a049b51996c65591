module github.com/interprocess-go/ipc/conformance

go 1.25.0

require github.com/interprocess-go/ipc v0.0.0

require golang.org/x/net v0.54.0

replace github.com/interprocess-go/ipc => ../
