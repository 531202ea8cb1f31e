package inspect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"saru/proto/ipvssync"
)

// Config says what to show and how.
type Config struct {
	// File is a capture in pcap or pcapng form; "-" is standard input. Empty: live traffic.
	File string
	// Interface is what to listen to when there is no File; empty: all of them. It is joined to Group, so that
	// switches deliver the group; with all interfaces nothing is joined.
	Interface string
	// Group shows only messages to this address. The zero Addr: any destination in a file, the kernel's default group live.
	Group netip.Addr
	// Port shows only messages to this UDP port; 0: 8848.
	Port uint16
	// JSON prints one object a line for each record, and one for a message without records. Otherwise text.
	JSON bool
	// Out receives the lines. Live lines are written as they come.
	Out io.Writer
	// Verify, if set, checks the tag of this suite's messages: datagram is the whole message with the tag in its last bytes. It must not
	// keep the slice. It is called by one goroutine. The method Verify of seal.Ring fits.
	Verify func(keyID uint8, datagram []byte) error
}

// ErrCutOff is returned for a capture file that ends within a packet; what precedes has been shown.
var ErrCutOff = errors.New("capture file ends within a packet")

// packet is what sources deliver: one packet from its network header on.
type packet struct {
	time   time.Time
	link   string // name of the interface, if known
	proto  uint16 // EtherType
	data   []byte // valid until the next packet is asked for
	cutOff bool   // the capture has not all of it
}

// stdin is the file name that stands for standard input.
const stdin = "-"

// source delivers packets. It returns io.EOF at the end of a file, and ErrCutOff or another error when it cannot go on. Live
// sources end with the context's error.
type source interface {
	next() (packet, error)
	close() error
}

// Run shows traffic until the file ends or ctx is done; the latter is no error. Damaged messages are shown and do not end it.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Port == 0 {
		cfg.Port = ipvssync.Port
	}
	src, err := open(ctx, &cfg)
	if err != nil {
		return err
	}
	err = run(ctx, cfg, src)
	return errors.Join(err, src.close())
}

func open(ctx context.Context, cfg *Config) (source, error) {
	if cfg.File != "" {
		return openFile(cfg.File)
	}
	if !cfg.Group.IsValid() {
		cfg.Group = ipvssync.DefaultGroup().Addr()
	}
	return openLive(ctx, cfg.Interface, cfg.Group)
}

func run(ctx context.Context, cfg Config, src source) error {
	out := bufio.NewWriter(cfg.Out)
	dis := newDissector(cfg.Group, cfg.Port)
	dec := decoder{verify: cfg.Verify, names: make(map[uint64]string)}
	write := printText
	if cfg.JSON {
		write = printJSON
	}
	live := cfg.File == "" || cfg.File == stdin
	show := func(d datagram) error {
		err := write(out, dec.decode(d))
		if err == nil && live {
			err = out.Flush()
		}
		if err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		return nil
	}

	var end error
	for ctx.Err() == nil {
		p, err := src.next()
		if err != nil {
			end = err
			break
		}
		for _, d := range dis.add(p) {
			if err := show(d); err != nil {
				return err
			}
		}
	}
	for _, d := range dis.flush() {
		if err := show(d); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if errors.Is(end, io.EOF) || ctx.Err() != nil {
		end = nil
	}
	return end
}
