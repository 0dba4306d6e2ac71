package image

import "testing"

// FuzzManifest: a manifest from a shared store is refused or usable, and never
// more.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"size":4096,"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`))
	f.Add([]byte(`{"size":1e99}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		if err == nil && (m.Size < superOffset || m.Size > maxImage || len(m.SHA256) != 64) {
			t.Errorf("%q gives %+v", text, m)
		}
	})
}
