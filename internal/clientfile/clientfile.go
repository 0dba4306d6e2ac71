// Package clientfile is the note that a server leaves in its data directory so
// that the command on the same host finds it, with a key.
package clientfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nacrehq/nacre/internal/atomicfile"
)

// Name is the file's name in the data directory. Its mode is 0600: it holds a key.
const Name = "client.json"

// File is the content. At least one of APIURL and TLSDomain is set.
type File struct {
	APIKey string `json:"api_key"`

	// APIURL is the plain HTTP listener, which serves the API and, by routing
	// header, sandboxes; "" when there is none.
	APIURL string `json:"api_url,omitempty"`

	// Domain is what sandboxes' host names end in, without a port.
	Domain string `json:"domain,omitempty"`
	// TLSDomain is Domain with the HTTPS listener's port where it is not 443;
	// the API is at https://api.TLSDomain. "" when there is no such listener.
	TLSDomain string `json:"tls_domain,omitempty"`

	// CAFile is the local certificate authority, CABundle the same together with
	// the host's own roots; both in PEM, both "" with a certificate of one's own.
	CAFile   string `json:"ca_file,omitempty"`
	CABundle string `json:"ca_bundle,omitempty"`
}

// Write replaces the file in the data directory in one step.
func Write(dataDir string, f File) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dataDir, Name), append(data, '\n'), 0o600)
}

// Read reads the file. Its errors say what to do.
func Read(dataDir string) (File, error) {
	path := filepath.Join(dataDir, Name)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return File{}, fmt.Errorf("no server has run on %s: start one with `nacre up`, name its directory with --data-dir, "+
			"or, for one elsewhere, leave that out and set NACRE_API_URL and NACRE_API_KEY", dataDir)
	case errors.Is(err, fs.ErrPermission):
		return File{}, fmt.Errorf("%s belongs to another user: run the command as the server's user, "+
			"or set NACRE_API_URL and NACRE_API_KEY", path)
	case err != nil:
		return File{}, err
	}
	f, err := parse(path, data)
	if err == nil && (f.APIKey == "" || f.APIURL == "" && f.TLSDomain == "") {
		err = fmt.Errorf("%s is incomplete; the server writes it anew when it starts", path)
	}
	if err != nil {
		return File{}, err
	}
	return f, nil
}

// Key returns the key alone, which is there before the server is ready; "" when there
// is none, and when the file cannot be read.
func Key(dataDir string) string { return last(dataDir).APIKey }

// WriteKey replaces the key and keeps the rest. A server does it before it is ready.
func WriteKey(dataDir, key string) error {
	f := last(dataDir)
	f.APIKey = key
	return Write(dataDir, f)
}

// last is what the file has, complete or not.
func last(dataDir string) File {
	path := filepath.Join(dataDir, Name)
	data, err := os.ReadFile(path)
	if err != nil {
		return File{}
	}
	f, _ := parse(path, data)
	return f
}

func parse(path string, data []byte) (f File, err error) {
	if err := json.Unmarshal(data, &f); err != nil {
		return File{}, fmt.Errorf("%s: %w; the server writes it anew when it starts", path, err)
	}
	return f, nil
}
