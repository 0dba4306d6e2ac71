package sqlstore

import (
	"encoding/base64"
	"encoding/binary"
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
	cursorLen     = 1 + 8 + 8 + 21 // version, filter, started, id
)

// encode ties the cursor to the filter that it came from: used with another it
// would skip records without a word.
func (c cursor) encode(f nacre.SandboxFilter) string {
	b := make([]byte, 0, cursorLen)
	b = append(b, cursorVersion)
	b = binary.BigEndian.AppendUint64(b, shape(f))
	b = binary.BigEndian.AppendUint64(b, uint64(c.started))
	b = append(b, c.id...)
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseCursor returns nil for "".
func parseCursor(f nacre.SandboxFilter) (*cursor, error) {
	if f.Cursor == "" {
		return nil, nil
	}
	bad := nacre.Invalidf("cursor", "the cursor is not one that this list gave; begin again without one")
	if len(f.Cursor) != base64.RawURLEncoding.EncodedLen(cursorLen) {
		return nil, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(f.Cursor)
	if err != nil || len(b) != cursorLen || b[0] != cursorVersion {
		return nil, bad
	}
	c := &cursor{started: int64(binary.BigEndian.Uint64(b[9:])), id: nacre.SandboxID(b[17:])}
	if !c.id.Valid() || binary.BigEndian.Uint64(b[1:]) != shape(f) {
		return nil, bad
	}
	return c, nil
}

// shape hashes what a filter selects, but for DeadlineBefore, which moves with
// the clock from page to page.
func shape(f nacre.SandboxFilter) uint64 {
	h := fnv.New64a()
	put := func(kind byte, s string) {
		_, _ = h.Write(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(s))))
		_, _ = h.Write([]byte(s))
	}
	put('t', string(f.TeamID))
	if f.AllTeams {
		put('a', "")
	}
	for _, s := range slices.Sorted(slices.Values(f.States)) {
		put('s', string(s))
	}
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		put('k', k)
		put('v', f.Metadata[k])
	}
	put('n', string(f.Node))
	for _, id := range slices.Sorted(slices.Values(f.IDs)) {
		put('i', string(id))
	}
	if !f.DeadlineBefore.IsZero() {
		put('d', "")
	}
	return h.Sum64()
}
