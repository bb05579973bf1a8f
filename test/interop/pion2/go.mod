module github.com/seed4911071e/groupgate/test/interop/pion2

go 1.26.0

require github.com/pion/dtls/v2 v2.2.12

require (
	github.com/pion/logging v0.2.2 // indirect
	github.com/pion/transport/v2 v2.2.4 // indirect
	golang.org/x/crypto v0.18.0 // indirect
	golang.org/x/net v0.20.0 // indirect
	golang.org/x/sys v0.16.0 // indirect
)
