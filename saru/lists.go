package saru

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"saru/lib/flow"
)

// virtualList is the repeatable option --virtual: addresses, and "auto".
type virtualList struct{ o *Options }

var _, _ pflag.SliceValue = (*virtualList)(nil), (*senseList)(nil)

func (l *virtualList) Set(s string) error {
	if s == virtualAuto {
		l.o.VirtualAuto = true
		return nil
	}
	a, err := parseVirtual(s)
	if err != nil {
		return err
	}
	l.o.Virtuals = append(l.o.Virtuals, a)
	return nil
}

func (l *virtualList) Type() string          { return "ADDR" }
func (l *virtualList) String() string        { return strings.Join(l.GetSlice(), " ") }
func (l *virtualList) Append(s string) error { return l.Set(s) }

// Replace sets the whole list.
func (l *virtualList) Replace(values []string) error {
	l.o.Virtuals, l.o.VirtualAuto = nil, false
	return setAll(l, values)
}

// GetSlice returns the elements as text.
func (l *virtualList) GetSlice() []string {
	var out []string
	for _, a := range l.o.Virtuals {
		out = append(out, a.String())
	}
	if l.o.VirtualAuto {
		out = append(out, virtualAuto)
	}
	return out
}

// senseList is the repeatable option --sense: LIST for every address, ADDR=LIST for one.
type senseList struct {
	o     *Options
	whole bool // LIST was given
	texts []string
}

// newSenseList shows the default until something is set.
func newSenseList(o *Options) *senseList {
	return &senseList{o: o, texts: []string{o.Sense.String()}}
}

func (l *senseList) Set(s string) error {
	address, list, one := strings.Cut(s, "=")
	if !one {
		address, list = "", s
	}
	sense, err := flow.ParseSense(list)
	if err != nil {
		return fmt.Errorf("must be LIST or ADDR=LIST: %w", err)
	}
	if !one {
		if l.whole {
			return fmt.Errorf("a sense for every address is given twice; ADDR=LIST is for one")
		}
		l.o.Sense, l.whole = sense, true
	} else {
		a, err := parseVirtual(address)
		if err != nil {
			return fmt.Errorf("must be LIST or ADDR=LIST with a virtual address, such as 192.0.2.1=src-addr")
		}
		if _, twice := l.o.Senses[a]; twice {
			return fmt.Errorf("a sense for %s is given twice", a)
		}
		if l.o.Senses == nil {
			l.o.Senses = map[netip.Addr]flow.Sense{}
		}
		l.o.Senses[a] = sense
	}
	l.texts = append(l.texts, s)
	return nil
}

func (l *senseList) Type() string          { return "LIST" }
func (l *senseList) String() string        { return strings.Join(l.texts, " ") }
func (l *senseList) Append(s string) error { return l.Set(s) }

// Replace sets the whole list.
func (l *senseList) Replace(values []string) error {
	l.o.Sense, l.o.Senses, l.whole, l.texts = flow.Default.Sense, nil, false, nil
	return setAll(l, values)
}

// GetSlice returns the elements as text.
func (l *senseList) GetSlice() []string { return l.texts }

func setAll(v pflag.Value, values []string) error {
	for _, s := range values {
		if err := v.Set(s); err != nil {
			return err
		}
	}
	return nil
}
