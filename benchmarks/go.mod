module github.com/interprocess-go/ipc/benchmarks

go 1.26.0

replace github.com/interprocess-go/ipc => ../

require (
	github.com/Microsoft/go-winio v0.6.4
	github.com/interprocess-go/ipc v0.0.0-00010101000000-000000000000
)

require golang.org/x/sys v0.49.0 // indirect
