package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Value returns an option that parse reads into *p. The value that *p has is the
// default. The error of parse says what is allowed, in the form "must be …"; the
// option and the value are put before it. typ stands for the value in the help
// text ("FILE").
func Value[T any](p *T, typ string, parse func(string) (T, error)) pflag.Value {
	return &value[T]{p: p, typ: typ, parse: parse}
}

type value[T any] struct {
	p     *T
	typ   string
	parse func(string) (T, error)
}

func (v *value[T]) Set(s string) error {
	x, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.p = x
	return nil
}

func (v *value[T]) Type() string { return v.typ }

// String writes lengths of time as people do, "10s", "1h": the zero parts that the
// library appends to them tell nothing.
func (v *value[T]) String() string {
	if d, ok := any(*v.p).(time.Duration); ok {
		return shortDuration(d)
	}
	return fmt.Sprint(*v.p)
}

func shortDuration(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// Func returns an option that set reads, for what is more than one variable. text
// is its default as the help shows it.
func Func(typ, text string, set func(string) error) pflag.Value {
	return &function{typ: typ, text: text, set: set}
}

type function struct {
	typ, text string
	set       func(string) error
}

func (f *function) Set(s string) error {
	if err := f.set(s); err != nil {
		return err
	}
	f.text = s
	return nil
}

func (f *function) Type() string   { return f.typ }
func (f *function) String() string { return f.text }

// List returns a repeatable option: every time it is given, parse adds one
// element to *p.
func List[T any](p *[]T, typ string, parse func(string) (T, error)) pflag.Value {
	return &list[T]{p: p, typ: typ, parse: parse}
}

// list implements pflag.SliceValue, which is how Parse knows repeatable options.
type list[T any] struct {
	p     *[]T
	typ   string
	parse func(string) (T, error)
}

var _ pflag.SliceValue = (*list[string])(nil)

func (l *list[T]) Set(s string) error {
	x, err := l.parse(s)
	if err != nil {
		return err
	}
	*l.p = append(*l.p, x)
	return nil
}

func (l *list[T]) Type() string          { return l.typ }
func (l *list[T]) String() string        { return strings.Join(l.GetSlice(), " ") }
func (l *list[T]) Append(s string) error { return l.Set(s) }

// Replace sets the whole list.
func (l *list[T]) Replace(values []string) error {
	*l.p = nil
	for _, s := range values {
		if err := l.Set(s); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice returns the elements as text.
func (l *list[T]) GetSlice() []string {
	out := make([]string, 0, len(*l.p))
	for _, x := range *l.p {
		out = append(out, fmt.Sprint(x))
	}
	return out
}

// Flag adds an on/off option, whose value may be omitted.
func Flag(fs *pflag.FlagSet, p *bool, name, usage string) {
	f := fs.VarPF(Value(p, "bool", parseBool), name, "", usage)
	f.NoOptDefVal = "true"
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return false, errors.New("must be true or false, or nothing for true")
}

// OneOf returns a parser of a choice.
func OneOf(choices ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if slices.Contains(choices, s) {
			return s, nil
		}
		last := len(choices) - 1
		return "", fmt.Errorf("must be %s or %s", strings.Join(choices[:last], ", "), choices[last])
	}
}

// Between returns a parser of a decimal number from low to high.
func Between[T ~int | ~uint8 | ~uint16 | ~uint32](low, high T) func(string) (T, error) {
	return func(s string) (T, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n < uint64(low) || n > uint64(high) {
			return 0, fmt.Errorf("must be a number from %d to %d", low, high)
		}
		return T(n), nil
	}
}

// Duration returns a parser of a length of time from low to high.
func Duration(low, high time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < low || d > high {
			return 0, fmt.Errorf("must be a time with its unit (100ms, 2s) from %s to %s", shortDuration(low), shortDuration(high))
		}
		return d, nil
	}
}

// DurationOrOff is Duration, and 0 for off.
func DurationOrOff(low, high time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d != 0 && (d < low || d > high) {
			return 0, fmt.Errorf("must be a time with its unit (2s, 5m) from %s to %s, or 0 for off", shortDuration(low), shortDuration(high))
		}
		return d, nil
	}
}

// sizeUnits are the suffixes of sizes, largest first, with their binary logarithms.
var sizeUnits = []struct {
	suffix string
	bits   int
}{{"G", 30}, {"M", 20}, {"K", 10}}

// Size returns an option in bytes from low to high, to be written as a number with
// or without one of the suffixes K, M and G (1024, 1024², 1024³).
func Size(p *int, low, high int) pflag.Value {
	return &size{p: p, low: low, high: high}
}

type size struct {
	p         *int
	low, high int
}

func (v *size) Set(s string) error {
	digits, bits := s, 0
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(strings.ToUpper(s), u.suffix); ok {
			digits, bits = rest, u.bits
		}
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n<<bits < uint64(v.low) || n<<bits > uint64(v.high) { // 32 and 30 bits: no overflow
		return fmt.Errorf("must be a size in bytes from %s to %s, K, M and G stand for powers of 1024", sizeText(v.low), sizeText(v.high))
	}
	*v.p = int(n << bits)
	return nil
}

func (v *size) Type() string   { return "SIZE" }
func (v *size) String() string { return sizeText(*v.p) }

// sizeText writes n with the largest suffix that loses nothing.
func sizeText(n int) string {
	for _, u := range sizeUnits {
		if n != 0 && n&(1<<u.bits-1) == 0 {
			return strconv.Itoa(n>>u.bits) + u.suffix
		}
	}
	return strconv.Itoa(n)
}

// Path reads the name of a file. Control characters are refused: they would
// break the lines of logs and messages.
func Path(s string) (string, error) {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", errors.New("must be the name of a file")
	}
	return s, nil
}

// maxSocketPath is the longest path of a unix socket: sun_path of unix(7) has
// 108 bytes, of which the last is a NUL.
const maxSocketPath = 107

// SocketPath reads the name of a unix socket.
func SocketPath(s string) (string, error) {
	if _, err := Path(s); err != nil || len(s) > maxSocketPath || strings.HasSuffix(s, "/") {
		return "", fmt.Errorf("must be the path of a socket, at most %d bytes long", maxSocketPath)
	}
	return s, nil
}

// maxInterface is IFNAMSIZ-1 of linux/if.h.
const maxInterface = 15

// Interface reads the name of a network interface by the rules of the kernel
// (dev_valid_name in net/core/dev.c); whether it exists is not looked at. "%" is
// refused too, which the kernel takes as a template for a name ("tun%d").
func Interface(s string) (string, error) {
	bad := func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '%' || r == 0x7f }
	if s == "" || len(s) > maxInterface || s == "." || s == ".." || strings.ContainsFunc(s, bad) {
		return "", fmt.Errorf("must be the name of an interface: 1 to %d bytes without space, '/', ':' and '%%'", maxInterface)
	}
	return s, nil
}

// Group reads a multicast group with its port, ADDR:PORT or [ADDR]:PORT.
func Group(s string) (netip.AddrPort, error) {
	form := errors.New("must be a multicast address with a port, such as 224.0.0.81:8848 or [ff02::81]:8848")
	g, err := netip.ParseAddrPort(s)
	if err != nil || g.Port() == 0 {
		return netip.AddrPort{}, form
	}
	a := g.Addr()
	switch {
	case a.Zone() != "":
		return netip.AddrPort{}, errors.New("must be without a zone: --interface says where")
	case a.Is4In6():
		a = a.Unmap()
	}
	if !a.IsMulticast() {
		return netip.AddrPort{}, form
	}
	if a.IsInterfaceLocalMulticast() {
		return netip.AddrPort{}, errors.New("must be a group that leaves the machine: ff02:: or wider")
	}
	return netip.AddrPortFrom(a, g.Port()), nil
}
