package load

import (
	"bufio"
	"fmt"
	"io"
	"time"
)

// Order is what a client asks a server for. It is sent as one line of text.
type Order struct {
	Seed  uint64        // of the content
	Bytes int           // whole length
	Chunk int           // bytes that are sent at once; below the segment size, each is one packet and is acknowledged by one
	Pace  time.Duration // between two chunks
}

func (o Order) line() string {
	return fmt.Sprintf("get %d %d %d %d\n", o.Seed, o.Bytes, o.Chunk, o.Pace.Nanoseconds())
}

// maxOrder bounds what a server does for one line.
const maxOrder = 1 << 30

func readOrder(r io.Reader) (Order, error) {
	var o Order
	var ns int64
	line, err := bufio.NewReaderSize(r, 128).ReadString('\n')
	if err != nil {
		return o, fmt.Errorf("read order: %w", err)
	}
	if _, err := fmt.Sscanf(line, "get %d %d %d %d\n", &o.Seed, &o.Bytes, &o.Chunk, &ns); err != nil {
		return o, fmt.Errorf("read order %q: %w", line, err)
	}
	if o.Bytes < 0 || o.Bytes > maxOrder || o.Chunk <= 0 || o.Chunk > maxOrder || ns < 0 {
		return o, fmt.Errorf("read order %q: out of range", line)
	}
	o.Pace = time.Duration(ns)
	return o, nil
}

// content is an endless pseudo-random stream (xorshift64*, Vigna 2016). Both
// sides make it from the seed, so each byte can be checked where it arrives.
type content struct {
	state uint64
	word  uint64
	left  int
}

func newContent(seed uint64) *content {
	return &content{state: seed*0x9E3779B97F4A7C15 + 1} // never 0 for small seeds
}

// Read fills p; it never fails.
func (c *content) Read(p []byte) (int, error) {
	for i := range p {
		if c.left == 0 {
			c.state ^= c.state >> 12
			c.state ^= c.state << 25
			c.state ^= c.state >> 27
			c.word, c.left = c.state*0x2545F4914F6CDD1D, 8
		}
		p[i] = byte(c.word)
		c.word >>= 8
		c.left--
	}
	return len(p), nil
}
