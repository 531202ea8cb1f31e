package ipvssync

import (
	"errors"
	"testing"
)

// Pieces of hostile messages.
const (
	hdr1  = "00 07 0000 01 01 0000 " // one record; the test writes the size
	rec4  = "00 06 0024 00000002 0001 9c40 0050 1f90 00000000 00000384 0a010002 0a0000fe 0a020003 "
	fix4  = "00000002 0001 9c40 0050 1f90 00000000 00000384 0a010002 0a0000fe 0a020003 " // from the flags on
	fix6  = "00000002 0001 9c40 0050 1f90 00000000 00000384 " + addr6 + addr6 + addr6
	addr6 = "20010db8 00000000 00000000 00000002 "
	seq24 = "00000001 00000002 00000003 00000004 00000005 00000006 "
	rec0  = "00 06 9c40 0050 1f90 0a010002 0a0000fe 0a020003 0003 0001 "
)

// sized writes the true length into the size field.
func sized(b []byte) []byte {
	b[2], b[3] = byte(len(b)>>8), byte(len(b))
	return b
}

func TestHostileHeaders(t *testing.T) {
	for _, tt := range []struct {
		name string
		hex  string
		want error
	}{
		{"empty datagram", "", ErrMessageShort},
		{"three bytes", "01 07 00", ErrMessageShort},
		{"size below the datagram", "00 07 0007 00 01 0000", ErrMessageSize},
		{"size above the datagram", "00 07 0009 00 01 0000", ErrMessageSize},
		{"size zero", "00 07 0000 00 01 0000", ErrMessageSize},
		{"size in the other byte order", "00 07 0800 00 01 0000", ErrMessageSize},
		{"truncated by a short receive buffer", "00 07 002c 01 01 0000 00 06", ErrMessageSize},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			if _, err := ParseHeader(b); !errors.Is(err, tt.want) {
				t.Errorf("ParseHeader: %v, want %v", err, tt.want)
			}
			if m, err := Parse(b); !errors.Is(err, tt.want) || len(m.Bytes()) != 0 {
				t.Errorf("Parse: %v, want %v", err, tt.want)
			}
		})
	}
}

// TestVersions has what a kernel tells the versions by (ip_vs_process_message).
func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		name    string
		hex     string
		version uint8
		count   uint8
	}{
		{"version 1", "00 07 0008 02 01 0000", 1, 2},
		{"version 2 is version 0 without records", "00 07 0008 02 02 0000", 0, 0},
		{"negative version is version 0 without records", "00 07 0008 02 ff 0000", 0, 0},
		{"spare bytes used is version 0 without records", "00 07 0008 02 01 0001", 0, 0},
		{"first byte used is version 0", "03 07 0008 02 01 0000", 0, 3},
		{"too short for version 1", "00 07 0006 02 01", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := ParseHeader(unhex(t, tt.hex))
			if err != nil || h.Version != tt.version || h.Count != tt.count || h.SyncID != 7 {
				t.Errorf("%+v, %v; want version %d, count %d", h, err, tt.version, tt.count)
			}
		})
	}
}

func TestHostileRecords(t *testing.T) {
	for _, tt := range []struct {
		name string
		hex  string
		good int   // records before the damage, and after what is skipped
		want error // of the reader; of Records too unless it is Skipped
		end  error // of End, which does not look at options
	}{
		{"count without records", hdr1, 0, ErrRecordTruncated, ErrRecordTruncated},
		{"count above the records", "00 07 0000 02 01 0000" + rec4, 1, ErrRecordTruncated, ErrRecordTruncated},
		{"one byte short of an IPv4 record", hdr1 + rec4[:len(rec4)-3], 0, ErrRecordTruncated, ErrRecordTruncated},
		{"length beyond the message", hdr1 + "00 06 0025" + fix4, 0, ErrRecordOverrun, ErrRecordOverrun},
		{"length of 4095", hdr1 + "00 06 0fff" + fix4, 0, ErrRecordOverrun, ErrRecordOverrun},
		{"length of zero", hdr1 + "00 06 0000" + fix4, 0, ErrRecordShort, ErrRecordShort},
		{"length of 35", hdr1 + "00 06 0023" + fix4, 0, ErrRecordShort, ErrRecordShort},
		{"IPv6 record of 36 bytes", hdr1 + "01 06 0024" + fix4, 0, ErrRecordShort, ErrRecordShort},
		{"IPv6 record of 71 bytes", hdr1 + "01 06 0047" + fix6, 0, ErrRecordShort, ErrRecordShort},
		{"record version 1", hdr1 + "00 06 1024" + fix4, 0, ErrRecordVersion, ErrRecordVersion},
		{"record version 15", hdr1 + "00 06 f024" + fix4, 0, ErrRecordVersion, ErrRecordVersion},
		{"type 2", hdr1 + "02 06 0024" + fix4, 0, ErrRecordType, ErrRecordType},
		{"type 254", hdr1 + "fe 06 0024" + fix4, 0, ErrRecordType, ErrRecordType},
		{"type 255 is IPv6", hdr1 + "ff 06 0048" + fix6, 1, nil, nil},
		{"option of one byte", hdr1 + "00 06 0025" + fix4 + "01", 0, ErrOptionTruncated, nil},
		{"option without data", hdr1 + "00 06 0026" + fix4 + "7f 00", 0, ErrOptionLength, nil},
		{"option beyond its record", hdr1 + "00 06 0027" + fix4 + "7f 02 ab cd", 0, ErrOptionLength, nil},
		{"option of 255 bytes beyond the message", hdr1 + "00 06 0027" + fix4 + "7f ff ab", 0, ErrOptionLength, nil},
		{"padding within the record", hdr1 + "00 06 0028" + fix4 + "00000000", 0, ErrOptionLength, nil},
		{"sequence option of 23 bytes", hdr1 + "00 06 003d" + fix4 + "01 17" + seq24[:len(seq24)-3], 0, ErrSeqLength, nil},
		{"sequence option of 25 bytes", hdr1 + "00 06 003f" + fix4 + "01 19" + seq24 + "00", 0, ErrSeqLength, nil},
		{"sequence option twice", hdr1 + "00 06 0058" + fix4 + "01 18" + seq24 + "01 18" + seq24, 0, ErrOptionTwice, nil},
		{"sequence option twice, once optional", hdr1 + "00 06 0058" + fix4 + "01 18" + seq24 + "41 18" + seq24, 0, ErrOptionTwice, nil},
		{"sequence option marked optional", hdr1 + "00 06 003e" + fix4 + "41 18" + seq24, 1, nil, nil},
		{"engine name twice", hdr1 + "00 06 002a" + fix4 + "03 01 61 03 01 61", 0, ErrOptionTwice, nil},
		{"engine data twice", hdr1 + "00 06 002a" + fix4 + "02 01 61 02 01 61", 0, ErrOptionTwice, nil},
		{"engine name of 17 bytes", hdr1 + "00 06 0037" + fix4 + "03 11" + "6161616161616161616161616161616161", 0, ErrPENameLong, nil},
		{"engine data without name", hdr1 + "00 06 0027" + fix4 + "02 01 61", 0, ErrPENameMissing, nil},
		{"engine name without data", hdr1 + "00 06 0027" + fix4 + "03 01 61", 1, nil, nil},
		{"unknown mandatory option", hdr1 + "00 06 0027" + fix4 + "04 01 61", 0, ErrOptionMandatory, nil},
		{"option of type 0", hdr1 + "00 06 0027" + fix4 + "00 01 61", 0, ErrOptionMandatory, nil},
		{"option of type 0x81", hdr1 + "00 06 0027" + fix4 + "81 01 61", 0, ErrOptionMandatory, nil},
		{"option of type 0x40", hdr1 + "00 06 0027" + fix4 + "40 01 61", 1, nil, nil},
		{"option of type 0xff", hdr1 + "00 06 0027" + fix4 + "ff 01 61", 1, nil, nil},
		{"damage behind an unknown mandatory option", hdr1 + "00 06 0028" + fix4 + "04 01 61 01", 0, ErrOptionMandatory, nil},
		{"skipped record before a good one", "00 07 0000 02 01 0000 00 06 0027" + fix4 + "04 01 61 00" + rec4, 1, ErrOptionMandatory, nil},
		{"records back to back without padding", "00 07 0000 02 01 0000 00 06 0027" + fix4 + "44 01 61" + rec4, 1, ErrRecordTruncated, ErrRecordTruncated},
		{"version 0: count above the records", "02 07 0000" + rec0, 1, ErrRecordTruncated, ErrRecordTruncated},
		{"version 0: one byte short", "01 07 0000" + rec0[:len(rec0)-3], 0, ErrRecordTruncated, ErrRecordTruncated},
		{"version 0: sequence numbers missing", "01 07 0000 00 06 9c40 0050 1f90 0a010002 0a0000fe 0a020003 0400 0001", 0, ErrRecordOverrun, ErrRecordOverrun},
		{"version 0: sequence numbers cut off", "01 07 0000 00 06 9c40 0050 1f90 0a010002 0a0000fe 0a020003 0200 0001" + seq24[:len(seq24)-3], 0, ErrRecordOverrun, ErrRecordOverrun},
		{"version 0: IPv6 record in version 1 style is garbage", "01 07 0000 01 06", 0, ErrRecordTruncated, ErrRecordTruncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := sized(unhex(t, tt.hex))
			m, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}

			good, seen := 0, error(nil)
			r := m.Reader()
			for {
				var rec Record
				err := r.Next(&rec)
				if errors.Is(err, ErrEnd) {
					break
				}
				if err == nil {
					good++
					continue
				}
				seen = err
				if !Skipped(err) {
					if again := r.Next(&rec); again != err {
						t.Errorf("error %v is followed by %v", err, again)
					}
					break
				}
				if !rec.Client.IsValid() {
					t.Error("skipped record has no addresses")
				}
			}
			if good != tt.good || seen != tt.want {
				t.Errorf("Reader: %d records, %v; want %d, %v", good, seen, tt.good, tt.want)
			}

			good, seen = 0, nil
			for _, err := range m.Records() {
				if err != nil {
					seen = err
					continue
				}
				if seen != nil {
					t.Error("a record after an error")
				}
				good++
			}
			want := tt.want
			if Skipped(want) {
				want = nil
			}
			if good != tt.good || seen != want {
				t.Errorf("Records: %d records, %v; want %d, %v", good, seen, tt.good, want)
			}

			if end, err := m.End(); err != tt.end || err == nil && end != len(b) {
				t.Errorf("End() = %d, %v; want %d, %v", end, err, len(b), tt.end)
			}
		})
	}
}

// TestTruncations cuts a message with every option at every byte: whatever the cut, nothing but an error comes of the cut record.
func TestTruncations(t *testing.T) {
	for _, g := range loadGolden(t, "testdata/layout.hex") {
		if g.oneWay {
			continue
		}
		_, all := decode(t, g.data)
		for n := HeaderLenV1; n < len(g.data); n++ {
			m, err := Parse(sized(append([]byte(nil), g.data[:n]...)))
			if err != nil {
				t.Fatal(err)
			}
			good, failed := 0, false
			for _, err := range m.Records() {
				if err != nil {
					failed = true
				} else {
					good++
				}
			}
			if !failed || good >= len(all) {
				t.Errorf("%s cut to %d bytes: %d records, error %v", g.name, n, good, failed)
			}
			if end, err := m.End(); err == nil {
				t.Errorf("%s cut to %d bytes: End() = %d", g.name, n, end)
			}
		}
	}
}
