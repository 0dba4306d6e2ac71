package nacretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/nacrehq/nacre"
)

// TestBlobStore holds an implementation to the contract of nacre.BlobStore. open
// returns an empty store.
func TestBlobStore(t *testing.T, open func(t *testing.T) nacre.BlobStore) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, nacre.BlobStore){
		"PutGetStat":       blobPutGetStat,
		"Ranges":           blobRanges,
		"Replace":          blobReplace,
		"Delete":           blobDelete,
		"ListInKeyOrder":   blobList,
		"ListStops":        blobListStops,
		"Fault30_BadKeys":  blobBadKeys,
		"OddKeys":          blobOddKeys,
		"Fault03_TornPut":  blobTornPut,
		"CancelledContext": blobCancelled,
		"Concurrent":       blobConcurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// ReadBlob returns a whole object.
func ReadBlob(t *testing.T, s nacre.BlobStore, key string) string {
	t.Helper()
	r, err := s.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	return string(b)
}

func putBlob(t *testing.T, s nacre.BlobStore, key, content string) {
	t.Helper()
	b, err := s.Put(t.Context(), key, strings.NewReader(content))
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	if b.Key != key || b.Size != int64(len(content)) || b.ModTime.IsZero() {
		t.Fatalf("put %s of %d bytes returned %+v", key, len(content), b)
	}
}

func blobKeys(t *testing.T, s nacre.BlobStore, prefix string) []string {
	t.Helper()
	keys := []string{}
	if err := s.List(t.Context(), prefix, func(b nacre.Blob) error {
		keys = append(keys, b.Key)
		return nil
	}); err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	return keys
}

func wantBlobCode(t *testing.T, what string, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

func blobPutGetStat(t *testing.T, s nacre.BlobStore) {
	for key, content := range map[string]string{
		"a": "", "templates/b1/rootfs.erofs": "root", "big": strings.Repeat("0123456789abcdef", 1<<16),
	} {
		putBlob(t, s, key, content)
		if got := ReadBlob(t, s, key); got != content {
			t.Errorf("%s has %d bytes, want %d", key, len(got), len(content))
		}
		b, err := s.Stat(t.Context(), key)
		if err != nil || b.Key != key || b.Size != int64(len(content)) || b.ModTime.IsZero() {
			t.Errorf("stat %s: %+v %v", key, b, err)
		}
	}
	_, err := s.Get(t.Context(), "nothing", 0, -1)
	wantBlobCode(t, "get of nothing", err, nacre.CodeNotFound)
	_, err = s.Stat(t.Context(), "nothing/at/all")
	wantBlobCode(t, "stat of nothing", err, nacre.CodeNotFound)
	_, err = s.Stat(t.Context(), "templates")
	wantBlobCode(t, "stat of a prefix", err, nacre.CodeNotFound)
	_, err = s.Get(t.Context(), "templates/b1", 0, -1)
	wantBlobCode(t, "get of a prefix", err, nacre.CodeNotFound)
}

func blobRanges(t *testing.T, s nacre.BlobStore) {
	putBlob(t, s, "k", "0123456789")
	for _, c := range []struct {
		offset, length int64
		want           string
	}{
		{0, -1, "0123456789"}, {3, -1, "3456789"}, {3, 4, "3456"}, {0, 0, ""},
		{8, 100, "89"}, {10, -1, ""}, {10, 5, ""}, {0, 1 << 62, "0123456789"}, {2, -77, "23456789"},
	} {
		r, err := s.Get(t.Context(), "k", c.offset, c.length)
		if err != nil {
			t.Errorf("get %d+%d: %v", c.offset, c.length, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || string(got) != c.want {
			t.Errorf("get %d+%d = %q %v, want %q", c.offset, c.length, got, err, c.want)
		}
	}
	for _, offset := range []int64{11, 1 << 62, -1} {
		_, err := s.Get(t.Context(), "k", offset, -1)
		wantBlobCode(t, fmt.Sprintf("get from %d", offset), err, nacre.CodeInvalid)
	}
}

func blobReplace(t *testing.T, s nacre.BlobStore) {
	putBlob(t, s, "k", "first")
	old, err := s.Get(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	putBlob(t, s, "k", "the second")
	if got := ReadBlob(t, s, "k"); got != "the second" {
		t.Errorf("after a replacement: %q", got)
	}
	if got, err := io.ReadAll(old); err != nil || string(got) != "first" {
		t.Errorf("a replaced object that was open reads %q %v", got, err)
	}
	if keys := blobKeys(t, s, ""); !slices.Equal(keys, []string{"k"}) {
		t.Errorf("listed %q", keys)
	}
}

func blobDelete(t *testing.T, s nacre.BlobStore) {
	putBlob(t, s, "a/b/c", "content")
	putBlob(t, s, "a/d", "other")
	open, err := s.Get(t.Context(), "a/b/c", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for range 2 {
		if err := s.Delete(t.Context(), "a/b/c"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete of a prefix: %v", err)
	}
	if got, err := io.ReadAll(open); err != nil || string(got) != "content" {
		t.Errorf("a deleted object that was open reads %q %v", got, err)
	}
	_, err = s.Stat(t.Context(), "a/b/c")
	wantBlobCode(t, "stat after delete", err, nacre.CodeNotFound)
	if keys := blobKeys(t, s, ""); !slices.Equal(keys, []string{"a/d"}) {
		t.Errorf("listed %q", keys)
	}
	putBlob(t, s, "a/b/c", "again")
}

func blobList(t *testing.T, s nacre.BlobStore) {
	if keys := blobKeys(t, s, ""); len(keys) != 0 {
		t.Errorf("an empty store lists %q", keys)
	}
	// '-' and '.' sort before '/', digits and letters after it.
	all := []string{"a", "a-b", "a.b/c", "a/b", "a/b/c", "a/b1", "a0", "aa/x", "b", "z/z/z/z"}
	for _, k := range []int{3, 0, 9, 1, 4, 2, 6, 5, 8, 7} {
		putBlob(t, s, all[k], all[k])
	}
	for prefix, want := range map[string][]string{
		"": all, "a": all[:8], "a/": all[3:6], "a/b": all[3:6], "a/b/": all[4:5], "a/b/c": all[4:5],
		"a.": all[2:3], "z/z/z/z/": {}, "q": {}, "/": {}, "../": {}, "z/z/": all[9:],
	} {
		if got := blobKeys(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("list %q = %q, want %q", prefix, got, want)
		}
	}
	if err := s.List(t.Context(), "a/b", func(b nacre.Blob) error {
		if b.Size != int64(len(b.Key)) || b.ModTime.IsZero() {
			return fmt.Errorf("listed %+v", b)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func blobListStops(t *testing.T, s nacre.BlobStore) {
	for i := range 5 {
		putBlob(t, s, fmt.Sprintf("k%d", i), "x")
	}
	stop, n := errors.New("stop"), 0
	err := s.List(t.Context(), "", func(nacre.Blob) error {
		if n++; n == 2 {
			return stop
		}
		return nil
	})
	if err != stop || n != 2 {
		t.Errorf("list ended with %v after %d", err, n)
	}
	// The callback may use the store.
	err = s.List(t.Context(), "", func(b nacre.Blob) error { return s.Delete(t.Context(), b.Key) })
	if err != nil || len(blobKeys(t, s, "")) != 0 {
		t.Errorf("deleting while listing: %v, left %q", err, blobKeys(t, s, ""))
	}
}

func blobBadKeys(t *testing.T, s nacre.BlobStore) {
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", "/etc/passwd",
		"a b", "a\x00b", "a\nb", "a\r\nb", "a%2fb", "a\\b", "ä", "a+", "a~", "a:b", "a*", "\xff", "a;drop table",
		strings.Repeat("a", 513), strings.Repeat("a/", 256) + "aa",
	} {
		ctx := t.Context()
		_, err := s.Put(ctx, key, strings.NewReader("x"))
		wantBlobCode(t, fmt.Sprintf("put %.40q", key), err, nacre.CodeInvalid)
		_, err = s.Get(ctx, key, 0, -1)
		wantBlobCode(t, fmt.Sprintf("get %.40q", key), err, nacre.CodeInvalid)
		_, err = s.Stat(ctx, key)
		wantBlobCode(t, fmt.Sprintf("stat %.40q", key), err, nacre.CodeInvalid)
		wantBlobCode(t, fmt.Sprintf("delete %.40q", key), s.Delete(ctx, key), nacre.CodeInvalid)
	}
	if keys := blobKeys(t, s, ""); len(keys) != 0 {
		t.Errorf("bad keys left %q", keys)
	}
}

// blobOddKeys: whatever the contract allows works, side by side.
func blobOddKeys(t *testing.T, s nacre.BlobStore) {
	long := strings.Repeat("k", 512)
	keys := []string{
		"a", "a/a", "a/a/a", "...", ".tmp-x", "-", "_", "a.blob", "A", "tmp/x", "objects/x",
		long, long[:200], long[:201], long[:255], long[:256], long[:400],
		long[:200] + "/x", long[:250] + "/" + long[:250], strings.Repeat("a/", 255) + "aa",
	}
	for _, key := range keys {
		putBlob(t, s, key, "content of "+key)
	}
	for _, key := range keys {
		if got := ReadBlob(t, s, key); got != "content of "+key {
			t.Errorf("%.40s... has another's content", key)
		}
	}
	slices.Sort(keys)
	if got := blobKeys(t, s, ""); !slices.Equal(got, keys) {
		t.Errorf("listed %q, want %q", got, keys)
	}
	for _, key := range keys {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("delete %.40s: %v", key, err)
		}
	}
	if got := blobKeys(t, s, ""); len(got) != 0 {
		t.Errorf("left %q", got)
	}
}

// blobTornPut: a reader that fails leaves what there was.
func blobTornPut(t *testing.T, s nacre.BlobStore) {
	broken := errors.New("the line broke")
	torn := func() io.Reader {
		return io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)), iotest.ErrReader(broken))
	}
	if _, err := s.Put(t.Context(), "new", torn()); !errors.Is(err, broken) {
		t.Errorf("put of a broken reader: %v", err)
	}
	_, err := s.Stat(t.Context(), "new")
	wantBlobCode(t, "stat after a torn put", err, nacre.CodeNotFound)
	putBlob(t, s, "old", "whole")
	if _, err := s.Put(t.Context(), "old", torn()); !errors.Is(err, broken) {
		t.Errorf("put of a broken reader: %v", err)
	}
	if got := ReadBlob(t, s, "old"); got != "whole" {
		t.Errorf("a torn put replaced the object by %d bytes", len(got))
	}
	if keys := blobKeys(t, s, ""); !slices.Equal(keys, []string{"old"}) {
		t.Errorf("listed %q", keys)
	}
}

func blobCancelled(t *testing.T, s nacre.BlobStore) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The context ends while the object is read.
	r := io.MultiReader(strings.NewReader("begin"), readerFunc(func(p []byte) (int, error) {
		cancel()
		return copy(p, "more"), nil
	}), strings.NewReader("end"))
	if _, err := s.Put(ctx, "k", r); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	if keys := blobKeys(t, s, ""); len(keys) != 0 {
		t.Errorf("listed %q", keys)
	}
	putBlob(t, s, "k", "content")
	_, err := s.Get(ctx, "k", 0, -1)
	_, err2 := s.Stat(ctx, "k")
	err3 := s.List(ctx, "", func(nacre.Blob) error { return nil })
	for _, err := range []error{err, err2, err3, s.Delete(ctx, "k")} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// blobConcurrent: puts, gets, lists and deletes of the same few keys at once; what
// is read is always one whole object.
func blobConcurrent(t *testing.T, s nacre.BlobStore) {
	keys := []string{"d/k", "d/e/k", "d/e/f/k"}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 30 {
				key := keys[(w+i)%len(keys)]
				content := bytes.Repeat([]byte{byte('a' + w)}, 1000*(w+1))
				if _, err := s.Put(t.Context(), key, bytes.NewReader(content)); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if i%5 == 0 {
					if err := s.Delete(t.Context(), keys[i%len(keys)]); err != nil {
						t.Errorf("delete: %v", err)
					}
					if err := s.List(t.Context(), "d", func(nacre.Blob) error { return nil }); err != nil {
						t.Errorf("list: %v", err)
					}
				}
				r, err := s.Get(t.Context(), key, 0, -1)
				if nacre.IsCode(err, nacre.CodeNotFound) {
					continue
				}
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				got, err := io.ReadAll(r)
				if err := errors.Join(err, r.Close()); err != nil {
					t.Errorf("read: %v", err)
				}
				if n := int(got[0]-'a') + 1; len(got) != 1000*n || bytes.Count(got, got[:1]) != len(got) {
					t.Errorf("read a mix of %d bytes", len(got))
				}
			}
		})
	}
	wg.Wait()
}
