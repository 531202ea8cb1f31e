package ipvssync

// Builder fills messages of version 1 up to a length. The zero value is not ready: call Reset. One buffer can be
// used again and again; then nothing allocates.
//
//	w.Reset(buf[:0], syncID, limit)
//	for w.Add(&rec) == nil { ... }
//	msg, err := w.Finish()
type Builder struct {
	b     []byte
	start int
	limit int // of the whole buffer
	count int
}

// Reset begins a message at the end of b. Its records take it to no more than limit bytes, header included and b not
// counted; leave room for what is to follow the records. A limit of 0 or above MaxSize is MaxSize.
func (w *Builder) Reset(b []byte, syncID uint8, limit int) {
	if limit <= 0 || limit > MaxSize {
		limit = MaxSize
	}
	*w = Builder{b: AppendHeaderV1(b, syncID), start: len(b), limit: len(b) + limit}
}

// Add appends r. It fails with ErrFull when the message has 255 records or no room for r: finish it and add r to the next
// one. ErrFull for the first record of a message means that r alone exceeds the limit. Other errors are those of AppendRecordV1. Nothing changes on an error.
func (w *Builder) Add(r *Record) error {
	if w.count == MaxRecords {
		return ErrFull
	}
	if pad := -(len(w.b) - w.start) & alignMask; len(w.b)+pad+RecordLen(r) > w.limit {
		return ErrFull
	}
	b, err := AppendRecordV1(w.b, w.start, r)
	if err != nil {
		return err
	}
	w.b = b
	w.count++
	return nil
}

// Count returns the number of records.
func (w *Builder) Count() int { return w.count }

// Len returns the length of the message so far.
func (w *Builder) Len() int { return len(w.b) - w.start }

// Padded pads the message and returns the buffer, so that the caller can append what is to follow the records and call [FinishV1] with
// the message's offset and Count. Add must not be called any more.
func (w *Builder) Padded() []byte {
	w.b = PadV1(w.b, w.start)
	return w.b
}

// Finish completes a message of records only and returns the buffer.
func (w *Builder) Finish() ([]byte, error) {
	return w.b, FinishV1(w.b, w.start, w.count)
}
