package transfer

import (
	"encoding/binary"
	"errors"
	"math"

	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// Limits and lengths of what entries need.
const (
	// MaxOrigins is how many origins a session can announce.
	MaxOrigins = 1 << 16
	// MaxName is the longest name of an origin in bytes.
	MaxName = mirror.MaxName

	originLen  = 11
	baseLen    = 8
	sectionLen = 4
)

// Origin is a director that entries come from.
type Origin struct {
	Index uint16
	Node  uint64
	Name  string // at most MaxName bytes of printable ASCII; empty: not known
}

// AppendOrigin appends one item of TypeOrigins. A name that the format cannot carry is left out.
func AppendOrigin(b []byte, o *Origin) []byte {
	name := o.Name
	if !nameOK(name) {
		name = ""
	}
	b = binary.BigEndian.AppendUint16(b, o.Index)
	b = binary.BigEndian.AppendUint64(b, o.Node)
	return append(append(b, uint8(len(name))), name...)
}

// ParseOrigin reads the first item of a payload of TypeOrigins and returns what follows it. The name is copied.
func ParseOrigin(b []byte) (o Origin, rest []byte, err error) {
	if len(b) < originLen {
		return o, nil, ErrPayload
	}
	end := originLen + int(b[10])
	if end > len(b) || !nameOK(b[originLen:end]) {
		return o, nil, ErrPayload
	}
	return Origin{Index: binary.BigEndian.Uint16(b), Node: binary.BigEndian.Uint64(b[2:]), Name: string(b[originLen:end])}, b[end:], nil
}

// nameOK reports whether a name can be carried. Unlike node names, those of stock kernels have a space ("kernel 10.0.0.1").
func nameOK[T string | []byte](name T) bool {
	if len(name) > MaxName {
		return false
	}
	for i := range len(name) {
		if name[i] < ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}

// Item is what an entry has besides its record.
type Item struct {
	Origin uint16 // index of an announced origin
	Grant  mirror.Grant
	Clock  uint64 // microseconds
	Age    uint32 // seconds since it was last refreshed
}

// ErrFull is what [Builder.Add] returns when a payload has no room left.
var ErrFull = errors.New("payload is full")

// Builder fills payloads of TypeEntries. The zero value is not ready: call Reset.
type Builder struct {
	b       []byte
	start   int // of the payload
	section int // offset of the section's header; 0: none yet
	bucket  uint16
	count   int // entries of the payload
	base    uint64
}

// Reset begins a payload at the end of b.
func (w *Builder) Reset(b []byte) { *w = Builder{b: b, start: len(b)} }

// Add appends an entry of a bucket; buckets must come in ascending order. It fails with ErrFull when there is no room: finish the payload
// and add the entry to the next one. Other errors are those of ipvssync.AppendRecordV1. Nothing changes on an error.
func (w *Builder) Add(bucket uint16, it *Item, r *ipvssync.Record) error {
	b, base, section := w.b, w.base, w.section
	if w.count == 0 {
		base = it.Clock
		b = binary.BigEndian.AppendUint64(b, base)
	}
	if section == 0 || bucket != w.bucket {
		section = len(b)
		b = append(binary.BigEndian.AppendUint16(b, bucket), 0, 0)
	}
	b = binary.AppendUvarint(b, uint64(it.Origin))
	b = binary.AppendUvarint(b, uint64(it.Grant.Term()))
	b = binary.AppendUvarint(b, uint64(it.Grant.Version()))
	b = binary.AppendVarint(b, int64(it.Clock-base))
	b = binary.AppendUvarint(b, uint64(it.Age))
	// A message that begins one header before makes the record start right here, without padding.
	b, err := ipvssync.AppendRecordV1(b, len(b)-ipvssync.HeaderLenV1, r)
	if err == nil && len(b)-w.start > MaxPayload {
		err = ErrFull
	}
	if err != nil {
		w.b = b[:len(w.b)] // it may have grown; behind its end nothing counts
		return err
	}
	w.b, w.base, w.section, w.bucket = b, base, section, bucket
	w.count++
	// A section cannot have more than its count can say: each entry takes more than 36 of 65,536 bytes.
	binary.BigEndian.PutUint16(b[section+2:], binary.BigEndian.Uint16(b[section+2:])+1)
	return nil
}

// Count returns the number of entries of the payload.
func (w *Builder) Count() int { return w.count }

// Bytes returns the buffer with the payload at its end.
func (w *Builder) Bytes() []byte { return w.b }

// ErrEnd is what [Reader.Next] returns after the last entry.
var ErrEnd = errors.New("no more entries")

// Reader reads the entries of a payload of TypeEntries.
type Reader struct {
	b      []byte // what has not been read
	base   uint64
	bucket int
	left   int // entries of the section
	begun  bool
	err    error // sticky
}

// NewReader returns a reader at the first entry of the payload.
func NewReader(payload []byte) Reader {
	if len(payload) < baseLen {
		return Reader{err: ErrPayload}
	}
	return Reader{b: payload[baseLen:], base: binary.BigEndian.Uint64(payload), bucket: -1}
}

// Next reads the next entry into it and r, whose persistence engine aliases the payload. It returns
//
//   - nil: the entry is complete;
//   - an error that is skipped (ipvssync.Skipped): the record is one that a kernel leaves out; the next call goes on;
//   - ErrEnd: there are no more;
//   - another error: the payload is damaged. Every later call returns it again.
func (r *Reader) Next(it *Item, rec *ipvssync.Record) error {
	if r.err != nil {
		return r.err
	}
	if r.left == 0 {
		if r.err = r.next(); r.err != nil {
			return r.err
		}
	}
	r.left--
	origin, term, version := r.uvarint(math.MaxUint16), r.uvarint(math.MaxUint32), r.uvarint(math.MaxUint32)
	offset, n := binary.Varint(r.b)
	if n <= 0 {
		r.err = ErrPayload
		return r.err
	}
	r.b = r.b[n:]
	age := r.uvarint(math.MaxUint32)
	if r.err != nil {
		return r.err
	}
	*it = Item{Origin: uint16(origin), Grant: mirror.NewGrant(uint32(term), uint32(version)), Clock: r.base + uint64(offset), Age: uint32(age)}
	n, err := ipvssync.ParseRecordV1(r.b, rec)
	if err != nil && !ipvssync.Skipped(err) {
		r.err = err
		return err
	}
	r.b = r.b[n:]
	return err
}

// next reads the header of the next section.
func (r *Reader) next() error {
	if len(r.b) == 0 && r.begun {
		return ErrEnd
	}
	if len(r.b) < sectionLen {
		return ErrPayload
	}
	bucket, count := int(binary.BigEndian.Uint16(r.b)), int(binary.BigEndian.Uint16(r.b[2:]))
	if bucket >= Buckets || bucket <= r.bucket || count == 0 {
		return ErrPayload
	}
	r.b, r.bucket, r.left, r.begun = r.b[sectionLen:], bucket, count, true
	return nil
}

func (r *Reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.err = ErrPayload
		return 0
	}
	r.b = r.b[n:]
	return v
}

// Bucket returns the bucket of the entry that was read last.
func (r *Reader) Bucket() uint16 { return uint16(r.bucket) }
