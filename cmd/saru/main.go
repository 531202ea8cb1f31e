// Saru lets each packet to a shared virtual address through at exactly one of its directors: see package saru.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"saru/saru"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := saru.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
