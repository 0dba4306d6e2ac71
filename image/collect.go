package image

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/nacrehq/nacre"
)

func (s *Artifacts) garbageDue(last time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.garbage && time.Since(last) >= s.o.Collect
}

// collect frees the chunks that no index holds, and counts those that one does. Chunks
// and indexes are made by the goroutine that collects, so none comes meanwhile; one
// that a crash left without an index is found here.
func (s *Artifacts) collect(ctx context.Context) error {
	s.mu.Lock()
	s.garbage = false
	s.mu.Unlock()
	chunks, err := s.storedChunks(ctx)
	if err == nil {
		err = s.count(ctx, chunks)
	}
	if err == nil {
		err = s.freeOthers(ctx, chunks)
	}
	if err != nil {
		s.mu.Lock()
		s.garbage = true
		s.mu.Unlock()
	}
	return err
}

// stored is a chunk that is there.
type stored struct {
	size   int64
	holder int // the last team that was found to hold it, by its number; 0 for none
}

func (s *Artifacts) storedChunks(ctx context.Context) (map[sum]stored, error) {
	out := map[sum]stored{}
	err := s.o.Blobs.List(ctx, s.o.Prefix, func(b nacre.Blob) error {
		if c, ok := s.keySum(b.Key); ok {
			out[c] = stored{size: b.Size}
		}
		return nil
	})
	return out, err
}

// count notes who holds which chunks, and what each snapshot bears: what several of a
// team have in common the oldest of them, and what two teams have in common both, for
// else one could tell from its own figure what the other has.
func (s *Artifacts) count(ctx context.Context, chunks map[sum]stored) error {
	all, err := s.indexed()
	if err != nil {
		return err
	}
	team, begin := 0, time.Now()
	for i, h := range all {
		if i == 0 || h.team != all[i-1].team {
			team++
		}
		if err := s.countOne(h.id, team, chunks); err != nil {
			return err
		}
		if worked := time.Since(begin); worked >= slice {
			if err := pause(ctx, time.Duration(s.o.Rest*float64(worked))); err != nil {
				return err
			}
			begin = time.Now()
		}
	}
	return nil
}

func (s *Artifacts) countOne(id nacre.SnapshotID, team int, chunks map[sum]stored) error {
	data, err := s.root.ReadFile(indexPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	x, err := decodeIndex(data)
	if err != nil {
		s.recut(id, err)
		return nil
	}
	bears := int64(0)
	for _, f := range x.Files {
		_ = f.each(func(p piece) error {
			if c, ok := chunks[p.sum]; ok && c.holder != team {
				bears += c.size
				c.holder = team
				chunks[p.sum] = c
			}
			return nil
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.all[id]; a != nil {
		a.chunks, a.counted = bears, true
	}
	return nil
}

// holder is a snapshot with an index.
type holder struct {
	id   nacre.SnapshotID
	team nacre.TeamID
	at   time.Time
}

// indexed lists the indexes on disk by team and age. Those of deleted snapshots, which
// somebody may still have open, come last and are nobody's.
func (s *Artifacts) indexed() ([]holder, error) {
	entries, err := fs.ReadDir(s.root.FS(), indexDir)
	if err != nil {
		return nil, err
	}
	var out []holder
	s.mu.Lock()
	for _, e := range entries {
		if id, ok := jsonID(e.Name()); ok {
			h := holder{id: id}
			if a := s.all[id]; a != nil && a.state == committed {
				h.team, h.at = a.m.Team, a.m.CreatedAt
			}
			out = append(out, h)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b holder) int {
		return cmp.Or(cmp.Compare(b.team, a.team), a.at.Compare(b.at), cmp.Compare(a.id, b.id))
	})
	return out, nil
}

// recut makes a damaged index anew when the plain files are there; when they are not
// the chunks are of no use without it.
func (s *Artifacts) recut(id nacre.SnapshotID, cause error) {
	s.o.Logger.Error("a snapshot's index is damaged", "snapshot", id, "err", cause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.all[id]; a != nil && a.plain && a.work == nil {
		a.index = false
	}
}

// freeOthers deletes the chunks that nobody holds.
func (s *Artifacts) freeOthers(ctx context.Context, chunks map[sum]stored) error {
	begin := time.Now()
	for name, c := range chunks {
		if c.holder != 0 {
			continue
		}
		if err := s.o.Step("free chunk"); err != nil {
			return err
		}
		if err := s.o.Blobs.Delete(ctx, s.chunkKey(name)); err != nil {
			return err
		}
		if worked := time.Since(begin); worked >= slice {
			if err := s.pace(ctx, nil, worked); err != nil {
				return err
			}
			begin = time.Now()
		}
	}
	return nil
}
