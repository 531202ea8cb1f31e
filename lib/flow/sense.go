package flow

import (
	"errors"
	"fmt"
	"strings"
)

// Field is a part of a packet that a share function looks at.
type Field uint8

// Fields, in the order in which they are hashed.
const (
	SrcAddr Field = iota
	SrcPort
	DstAddr
	DstPort
	fieldCount
)

var fieldNames = [fieldCount]string{SrcAddr: "src-addr", SrcPort: "src-port", DstAddr: "dst-addr", DstPort: "dst-port"}

// String returns the field's name.
func (f Field) String() string {
	if f < fieldCount {
		return fieldNames[f]
	}
	return fmt.Sprintf("field %d", uint8(f))
}

// Sense is a set of fields. They are hashed in their own fixed order, however the set was written. The zero value is empty, which no
// function may be.
type Sense uint8

const allFields Sense = 1<<fieldCount - 1

// SenseOf returns the set of these fields.
func SenseOf(fields ...Field) Sense {
	var s Sense
	for _, f := range fields {
		s |= 1 << f
	}
	return s
}

// Has says whether a field is in the set.
func (s Sense) Has(f Field) bool { return s&(1<<f) != 0 }

// Fields returns the fields in the order in which they are hashed.
func (s Sense) Fields() []Field {
	var out []Field
	for f := range fieldCount {
		if s.Has(f) {
			out = append(out, f)
		}
	}
	return out
}

// ParseSense reads names of fields, separated by commas, in any order.
func ParseSense(text string) (Sense, error) {
	if text == "" {
		return 0, errors.New("no field; give some of " + allFields.String())
	}
	var s Sense
	for name := range strings.SplitSeq(text, ",") {
		f := fieldCount
		for g := range fieldCount {
			if fieldNames[g] == name {
				f = g
			}
		}
		switch {
		case f == fieldCount:
			return 0, fmt.Errorf("unknown field %q; there are %s", name, allFields)
		case s.Has(f):
			return 0, fmt.Errorf("field %s is there twice", f)
		}
		s |= 1 << f
	}
	return s, nil
}

// String returns the set as ParseSense reads it.
func (s Sense) String() string {
	var names []string
	for _, f := range s.Fields() {
		names = append(names, f.String())
	}
	return strings.Join(names, ",")
}
