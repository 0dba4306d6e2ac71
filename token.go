package nacre

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strconv"
	"strings"
)

// TokenKey derives the tokens of sandboxes from one secret of the installation,
// so that none is stored: a token names its sandbox, and still does when the
// sandbox is gone, which is how a dead one is told from a wrong one.
type TokenKey [32]byte

// Token kinds: a token of one kind is worthless as another.
const (
	tokenAccess  = "access"
	tokenTraffic = "traffic"
	tokenHost    = "host"
)

// AccessToken opens a sandbox's agent ("X-Access-Token").
func (k TokenKey) AccessToken(id SandboxID, epoch int) string { return k.token(tokenAccess, id, epoch) }

// TrafficToken opens the previews of a sandbox with PrivateTraffic.
func (k TokenKey) TrafficToken(id SandboxID, epoch int) string {
	return k.token(tokenTraffic, id, epoch)
}

// HostToken opens the calls of a machine's agent that are the host's alone.
func (k TokenKey) HostToken(id MachineID) string {
	m := hmac.New(sha256.New, k[:])
	m.Write([]byte(tokenHost + "\x00" + string(id)))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// ParseAccessToken returns whose access token it is. ok is false for a text that
// this installation did not issue. The caller compares the epoch with the record's.
func (k TokenKey) ParseAccessToken(token string) (id SandboxID, epoch int, ok bool) {
	idPart, rest, found := strings.Cut(token, "_")
	epochPart, _, found2 := strings.Cut(rest, "_")
	if !found || !found2 || !SandboxID(idPart).Valid() {
		return "", 0, false
	}
	n, err := strconv.Atoi(epochPart)
	if err != nil || n < 0 || strconv.Itoa(n) != epochPart {
		return "", 0, false
	}
	want := k.AccessToken(SandboxID(idPart), n)
	if subtle.ConstantTimeCompare([]byte(token), []byte(want)) != 1 {
		return "", 0, false
	}
	return SandboxID(idPart), n, true
}

// token is "<id>_<epoch>_<mac>"; URL-safe, so it may stand in a query.
func (k TokenKey) token(kind string, id SandboxID, epoch int) string {
	m := hmac.New(sha256.New, k[:])
	prefix := string(id) + "_" + strconv.Itoa(epoch)
	m.Write([]byte(kind + "\x00" + prefix))
	return prefix + "_" + base64.RawURLEncoding.EncodeToString(m.Sum(nil)[:24])
}
