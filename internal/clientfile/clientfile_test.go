package clientfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	want := File{APIKey: "e2b_0", APIURL: "http://127.0.0.1:3000", Domain: "x.test", TLSDomain: "x.test:8443", CAFile: "/a", CABundle: "/b"}
	for range 2 { // a second start replaces it
		if err := Write(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(dir)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	st, err := os.Stat(filepath.Join(dir, Name))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v: the file holds a key", st.Mode(), err)
	}
}

func TestReadSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ name, content, want string }{
		{"missing", "", "nacre up"},
		{"broken", "{", "writes it anew"},
		{"no key", `{"api_url":"http://x"}`, "incomplete"},
		{"no address", `{"api_key":"k"}`, "incomplete"},
	} {
		if c.content != "" {
			if err := os.WriteFile(filepath.Join(dir, Name), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", c.name, err, c.want)
		}
	}
}
