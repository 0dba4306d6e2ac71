package blob

import (
	"path"
	"path/filepath"
	"strings"
)

// An object's file has its key's last part as its name, and lies in directories
// named after the other parts with a '+', so that "a" and "a/b" can both be
// objects: no part has a '+'. A part longer than maxName is cut, each piece but
// the last a directory with a '~'.

// maxName leaves room for the mark within the 255 bytes of a file name.
const maxName = 200

// objectPath is where the key's object lies below the root.
func objectPath(key string) string {
	parts := strings.Split(key, "/")
	names := []string{objectsDir}
	for i, part := range parts {
		for len(part) > maxName {
			names = append(names, part[:maxName]+"~")
			part = part[maxName:]
		}
		if i < len(parts)-1 {
			part += "+"
		}
		names = append(names, part)
	}
	return filepath.Join(names...)
}

// pathKey is the other way round; false for a file that objectPath names nothing.
func pathKey(file string) (string, bool) {
	inside, ok := strings.CutPrefix(filepath.ToSlash(file), objectsDir+"/")
	if !ok {
		return "", false
	}
	key := decode(inside)
	return key, checkKey(key) == nil && objectPath(key) == path.Clean(file)
}

func decode(inside string) string {
	return strings.NewReplacer("~/", "", "+/", "/").Replace(inside)
}

// mayHold tells whether keys with the prefix can lie in the directory.
func mayHold(dir, prefix string) bool {
	inside, _ := strings.CutPrefix(dir+"/", objectsDir+"/")
	begin := decode(inside)
	return strings.HasPrefix(begin, prefix) || strings.HasPrefix(prefix, begin)
}
