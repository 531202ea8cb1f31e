package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of a frame.
const (
	HeaderLen  = 8
	TagLen     = 16
	MaxPayload = 64 << 10
	// MaxFrame is the longest frame with header and tag.
	MaxFrame = HeaderLen + MaxPayload + TagLen
)

// Type says what a frame is.
type Type uint8

// Types. Those below 16 are the client's, the others the teacher's.
const (
	TypeRequest Type = 1
	TypeDigests Type = 2
	TypeWant    Type = 3
	TypeStart   Type = 16
	TypeDiffer  Type = 17
	TypeOrigins Type = 18
	TypeEntries Type = 19
	TypeFinish  Type = 20
	TypeError   Type = 21
)

// String returns the type's name.
func (t Type) String() string {
	switch t {
	case TypeRequest:
		return "request"
	case TypeDigests:
		return "digests"
	case TypeWant:
		return "want"
	case TypeStart:
		return "start"
	case TypeDiffer:
		return "differ"
	case TypeOrigins:
		return "origins"
	case TypeEntries:
		return "entries"
	case TypeFinish:
		return "finish"
	case TypeError:
		return "error"
	}
	return fmt.Sprintf("type-%d", uint8(t))
}

// Errors of frames and payloads.
var (
	ErrFrame   = errors.New("frame malformed")
	ErrPayload = errors.New("payload malformed")
)

// Header is the header of a frame.
type Header struct {
	Length int // of the payload
	Type   Type
}

// ParseHeader reads the header that fills the first HeaderLen bytes of b.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen || b[5]|b[6]|b[7] != 0 {
		return Header{}, ErrFrame
	}
	n := binary.BigEndian.Uint32(b)
	if n > MaxPayload {
		return Header{}, ErrFrame
	}
	return Header{Length: int(n), Type: Type(b[4])}, nil
}

// BeginFrame appends the header of a frame whose payload is to be appended next. The offset of the frame, len(b) before the call, is what EndFrame wants.
func BeginFrame(b []byte, t Type) []byte {
	return append(b, 0, 0, 0, 0, uint8(t), 0, 0, 0)
}

// EndFrame completes the frame that begins at start and reaches to the end of b: it writes the length and appends a tag of zeros, to be
// replaced by who signs. On an error b is returned unchanged.
func EndFrame(b []byte, start int) ([]byte, error) {
	n := len(b) - start - HeaderLen
	if start < 0 || n < 0 || n > MaxPayload {
		return b, ErrFrame
	}
	binary.BigEndian.PutUint32(b[start:], uint32(n))
	var tag [TagLen]byte
	return append(b, tag[:]...), nil
}
