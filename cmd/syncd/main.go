// Syncd mirrors the connections of Linux IPVS between directors: see package syncd.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"saru/syncd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := syncd.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
