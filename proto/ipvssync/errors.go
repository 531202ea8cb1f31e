package ipvssync

import "errors"

// Errors of messages: nothing of the message counts.
var (
	ErrMessageShort = errors.New("message shorter than its header")
	ErrMessageSize  = errors.New("message size field differs from the length of the message")
)

// Errors of records: the rest of the message does not count. In brackets the kernel's return value.
var (
	ErrRecordTruncated = errors.New("record begins too near the end of the message")
	ErrRecordOverrun   = errors.New("record ends beyond the message")
	ErrRecordVersion   = errors.New("unknown version of a record")
	ErrRecordType      = errors.New("unknown type of a record")               // -10
	ErrRecordShort     = errors.New("record length below its fixed part")     // -20
	ErrOptionTruncated = errors.New("option header cut off")                  // -30
	ErrOptionLength    = errors.New("option empty or longer than its record") // -40
	ErrSeqLength       = errors.New("sequence option of a wrong length")      // -50
	ErrOptionTwice     = errors.New("option given twice")                     // -50, -60, -70
	ErrPENameLong      = errors.New("persistence engine name over 16 bytes")  // -70, also when encoding
)

// Errors of records of which the kernel leaves out that record and reads on (see [Skipped]).
var (
	ErrOptionMandatory = errors.New("unknown mandatory option")                        // 20
	ErrPENameMissing   = errors.New("persistence engine data without the engine name") // 50, also when encoding
)

// ErrEnd is what [Reader.Next] returns after the last record.
var ErrEnd = errors.New("no more records")

// Errors of encoding. The buffer is unchanged.
var (
	ErrNoHeader       = errors.New("no message header at the start given")
	ErrFamily         = errors.New("addresses missing or not of one family")
	ErrFamilyV0       = errors.New("version 0 carries IPv4 only")
	ErrSeqFlags       = errors.New("version 0 needs sequence flags and sequence numbers together")
	ErrPEDataLong     = errors.New("persistence engine data over 255 bytes")
	ErrTooManyRecords = errors.New("more than 255 records")
	ErrTooLong        = errors.New("message over 65535 bytes")
	ErrFull           = errors.New("message is full")
)

// Skipped reports whether err costs one record only: the kernel leaves that record out and goes on with the next.
func Skipped(err error) bool {
	return errors.Is(err, ErrOptionMandatory) || errors.Is(err, ErrPENameMissing)
}
