package envd

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strconv"
)

// Operations that a signature can permit.
const (
	OpRead  = "read"
	OpWrite = "write"
)

// Signature permits one operation on one path without the access token, which
// it proves knowledge of. path and user stand as in the URL's query, user ""
// when it is not given; expires is in unix seconds, 0 for never.
func Signature(path, op, user, token string, expires int64) string {
	text := path + ":" + op + ":" + user + ":" + token
	if expires != 0 {
		text += ":" + strconv.FormatInt(expires, 10)
	}
	sum := sha256.Sum256([]byte(text))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// CheckSignature tells in constant time whether given is the Signature.
func CheckSignature(given, path, op, user, token string, expires int64) bool {
	want := Signature(path, op, user, token, expires)
	return subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}
