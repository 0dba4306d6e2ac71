package blob

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzKey: a key is refused, or it has one path of its own, inside and with names
// that a file system takes; and a path has one key.
func FuzzKey(f *testing.F) {
	for _, k := range []string{"a", "a/b", "..", "a/../b", "a//b", "/", "\x00", "a+/b", "a~/b", strings.Repeat("k", 512), strings.Repeat("k", 300) + "/x"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if k, ok := pathKey(objectsDir + "/" + key); ok && objectPath(k) != objectsDir+"/"+key {
			t.Errorf("path %q gives key %q, whose path is another", key, k)
		}
		if checkKey(key) != nil {
			return
		}
		path := objectPath(key)
		if !filepath.IsLocal(path) || !strings.HasPrefix(path, objectsDir+"/") {
			t.Fatalf("key %q leads to %q", key, path)
		}
		for name := range strings.SplitSeq(path, "/") {
			if len(name) > 255 {
				t.Errorf("key %q has a name of %d bytes", key, len(name))
			}
		}
		if back, ok := pathKey(path); !ok || back != key {
			t.Errorf("key %q came back as %q, %v", key, back, ok)
		}
		for i := range key {
			if !mayHold(filepath.Dir(path), key[:i]) {
				t.Errorf("listing %q skips %q", key[:i], path)
			}
		}
	})
}
