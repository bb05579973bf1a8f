// Command host is an existing CoAP gateway, built on go-coap with DTLS, that
// mounts groupgate: the lines between the two marks are all that it takes.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
)

// hostPSK is the key look-up that the host had before.
func hostPSK(identity []byte) ([]byte, error) {
	return nil, fmt.Errorf("no peer %q", identity)
}

// hostRouter is the router that the host had before.
func hostRouter() *mux.Router {
	r := mux.NewRouter()
	_ = r.Handle("/temperature", mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
		_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader([]byte("21.5")))
	}))
	return r
}

func main() {
	addr := flag.String("listen", "127.0.0.1:5684", "where to serve CoAP over DTLS")
	dir := flag.String("data-dir", "groupgate-data", "the gateway's data folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *dir); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr, dir string) error {
	// -- groupgate begins --
	cfg := config.Embedded() // or config.Load("gateway.yaml")
	cfg.DataDir = dir
	gg, err := plugin.New(cfg, slog.Default())
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- gg.Run(ctx) }()
	handler, psk := gg.Handler(hostRouter()), gg.PSK(hostPSK)
	// -- groupgate ends --

	l, err := net.NewDTLSListener("udp", addr, net.NewDTLSServerOptions(
		piondtls.WithPSK(psk),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
	))
	if err != nil {
		return err
	}
	srv := dtls.NewServer(options.WithMux(handler), options.WithContext(ctx), options.WithRequestMonitor(gg.Monitor))
	context.AfterFunc(ctx, srv.Stop)
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return <-done
}
