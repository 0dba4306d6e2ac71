package sqlstore

import (
	"encoding/base64"
	"encoding/binary"
	"hash"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/nacrehq/nacre"
)

// cursor is the place after one record in the order of a list.
type cursor struct {
	started int64 // microseconds
	id      nacre.SandboxID
}

const (
	cursorVersion = 1
	cursorHead    = 1 + 8 + 8 // version, filter, time; an id follows
)

// encode ties the cursor to the filter that it came from: used with another it
// would skip records without a word.
func (c cursor) encode(f nacre.SandboxFilter) string {
	return encodeCursor(shape(f), c.started, string(c.id))
}

// parseCursor returns nil for "".
func parseCursor(f nacre.SandboxFilter) (*cursor, error) {
	if f.Cursor == "" {
		return nil, nil
	}
	at, id, ok := decodeCursor(f.Cursor, shape(f))
	if !ok || !nacre.SandboxID(id).Valid() {
		return nil, errCursor()
	}
	return &cursor{started: at, id: nacre.SandboxID(id)}, nil
}

// snapshotCursor is the place after one snapshot.
type snapshotCursor struct {
	created int64 // microseconds
	id      nacre.SnapshotID
}

// parseSnapshotCursor returns nil for "".
func parseSnapshotCursor(f nacre.SnapshotFilter) (*snapshotCursor, error) {
	if f.Cursor == "" {
		return nil, nil
	}
	at, id, ok := decodeCursor(f.Cursor, snapshotShape(f))
	if !ok || !nacre.SnapshotID(id).Valid() {
		return nil, errCursor()
	}
	return &snapshotCursor{created: at, id: nacre.SnapshotID(id)}, nil
}

func errCursor() error {
	return nacre.Invalidf("Cursor", "the Cursor is not one that this list gave; begin again without one")
}

func encodeCursor(filter uint64, at int64, id string) string {
	b := make([]byte, 0, cursorHead+len(id))
	b = append(b, cursorVersion)
	b = binary.BigEndian.AppendUint64(b, filter)
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	return base64.RawURLEncoding.EncodeToString(append(b, id...))
}

func decodeCursor(text string, filter uint64) (at int64, id string, ok bool) {
	if len(text) > base64.RawURLEncoding.EncodedLen(cursorHead+32) {
		return 0, "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) <= cursorHead || b[0] != cursorVersion || binary.BigEndian.Uint64(b[1:]) != filter {
		return 0, "", false
	}
	// Of the spellings that decode to the same bytes one is ours.
	if base64.RawURLEncoding.EncodeToString(b) != text {
		return 0, "", false
	}
	return int64(binary.BigEndian.Uint64(b[9:])), string(b[cursorHead:]), true
}

// hashed is a hash of a filter's parts.
type hashed struct{ hash.Hash64 }

func (h hashed) put(kind byte, s string) {
	_, _ = h.Write(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(s))))
	_, _ = h.Write([]byte(s))
}

// shape hashes what a filter selects, but for DeadlineBefore, which moves with
// the clock from page to page.
func shape(f nacre.SandboxFilter) uint64 {
	h := hashed{fnv.New64a()}
	h.put('t', string(f.TeamID))
	if f.AllTeams {
		h.put('a', "")
	}
	for _, s := range slices.Sorted(slices.Values(f.States)) {
		h.put('s', string(s))
	}
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		h.put('k', k)
		h.put('v', f.Metadata[k])
	}
	h.put('n', string(f.Node))
	if f.Name != "" {
		h.put('m', f.Name)
	}
	for _, id := range slices.Sorted(slices.Values(f.IDs)) {
		h.put('i', string(id))
	}
	if !f.DeadlineBefore.IsZero() {
		h.put('d', "")
	}
	if f.OldestFirst {
		h.put('o', "")
	}
	return h.Sum64()
}

// snapshotShape hashes what a filter selects, but for ExpiresBefore, which moves
// with the clock from page to page.
func snapshotShape(f nacre.SnapshotFilter) uint64 {
	h := hashed{fnv.New64a()}
	h.put('t', string(f.TeamID))
	if f.AllTeams {
		h.put('a', "")
	}
	h.put('b', string(f.Sandbox))
	h.put('m', f.Name)
	for _, k := range slices.Sorted(slices.Values(f.Kinds)) {
		h.put('k', string(k))
	}
	for _, s := range slices.Sorted(slices.Values(f.States)) {
		h.put('s', string(s))
	}
	if !f.ExpiresBefore.IsZero() {
		h.put('e', "")
	}
	return h.Sum64()
}
