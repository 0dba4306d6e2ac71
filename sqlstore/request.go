package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/nacrehq/nacre"
)

// What a kept request may hold, in bytes.
const (
	maxRequestKey    = 255
	maxRequestRoute  = 512
	maxRequestAnswer = 1 << 20
)

// requestBody is the part of a request that no query looks at.
type requestBody struct {
	Hash        []byte `json:"hash"`
	Taken       int    `json:"taken,omitempty"`
	Status      int    `json:"status,omitempty"`
	ContentType string `json:"contentType,omitempty"`
}

// errLost tells a holder that the request is no longer its own.
func errLost() error {
	return nacre.Errorf(nacre.CodeConflict, "the request was taken over or answered by another")
}

// ClaimRequest implements nacre.RequestStore.
func (db *DB) ClaimRequest(ctx context.Context, r nacre.KeptRequest, now, keepSince time.Time) (kept nacre.KeptRequest, claimed bool, err error) {
	if err := checkRequest(r); err != nil {
		return nacre.KeptRequest{}, false, err
	}
	r.CreatedAt, r.Lease, r.Taken = micro(r.CreatedAt), micro(r.Lease), 0
	r.Status, r.ContentType, r.Answer = 0, "", nil
	err = db.write(ctx, func(ctx context.Context, c conn) error {
		kept, claimed = nacre.KeptRequest{}, false
		n, err := db.insertRequest(ctx, c, r)
		if err != nil {
			return err
		}
		if n == 1 {
			kept, claimed = r, true
			return nil
		}
		old, err := db.getRequest(ctx, c, r.RequestKey)
		if err != nil {
			return err
		}
		switch {
		case old.CreatedAt.Before(keepSince) && (old.Holder == "" || !now.Before(old.Lease)):
			if err := deleteRequest(ctx, c, r.RequestKey); err != nil {
				return err
			}
			kept, claimed = r, true
			_, err := db.insertRequest(ctx, c, r)
			return err
		case old.Body != r.Body:
			return nacre.Errorf(nacre.CodeConflict, "this idempotency key was used for another request; send the same body again, or take a new key")
		case old.Holder == "" || now.Before(old.Lease):
			kept = old
			return nil
		}
		old.Holder, old.Lease = r.Holder, r.Lease
		old.Taken++
		kept, claimed = old, true
		return db.putRequest(ctx, c, old)
	})
	if err != nil {
		return nacre.KeptRequest{}, false, err
	}
	return kept, claimed, nil
}

func checkRequest(r nacre.KeptRequest) error {
	switch {
	case r.TeamID == "" || !plain(string(r.TeamID)):
		return nacre.Invalidf("teamId", "a request needs a team")
	case r.Key == "" || len(r.Key) > maxRequestKey || !plain(r.Key):
		return nacre.Invalidf("Idempotency-Key", "an idempotency key is text of 1 to %d bytes", maxRequestKey)
	case r.Route == "" || len(r.Route) > maxRequestRoute || !plain(r.Route):
		return nacre.Invalidf("route", "the route of a request is text of 1 to %d bytes", maxRequestRoute)
	case r.Holder == "" || !plain(r.Holder):
		return nacre.Invalidf("holder", "a request needs a holder")
	}
	return nil
}

// sealName authenticates an answer's place.
func sealName(k nacre.RequestKey) string {
	text, _ := json.Marshal([]string{"request", string(k.TeamID), k.Route, k.Key}) // strings always encode
	return string(text)
}

func (db *DB) insertRequest(ctx context.Context, c conn, r nacre.KeptRequest) (int64, error) {
	text, err := json.Marshal(requestBody{Hash: r.Body[:]})
	if err != nil {
		return 0, err
	}
	return c.exec(ctx, `INSERT INTO requests (team_id, route, key, created_at, holder, lease, body)
		VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		string(r.TeamID), r.Route, r.Key, r.CreatedAt.UnixMicro(), r.Holder, r.Lease.UnixMicro(), string(text))
}

// getRequest locks the row that it reads.
func (db *DB) getRequest(ctx context.Context, c conn, k nacre.RequestKey) (nacre.KeptRequest, error) {
	r := nacre.KeptRequest{RequestKey: k}
	found, err := c.one(ctx, func(rows *sql.Rows) error {
		var created, lease int64
		var text, answer []byte
		if err := rows.Scan(&created, &r.Holder, &lease, &text, &answer); err != nil {
			return err
		}
		var b requestBody
		if err := json.Unmarshal(text, &b); err != nil {
			return nacre.Wrap(nacre.CodeInternal, err, "a kept request cannot be read")
		}
		copy(r.Body[:], b.Hash)
		r.CreatedAt, r.Lease = fromMicro(created), fromMicro(lease)
		r.Taken, r.Status, r.ContentType = b.Taken, b.Status, b.ContentType
		var err error
		r.Answer, err = db.sealer.reveal(sealName(k), answer)
		return err
	}, `SELECT created_at, holder, lease, body, answer FROM requests WHERE team_id = ? AND route = ? AND key = ?`+db.d.forUpdate,
		string(k.TeamID), k.Route, k.Key)
	if err == nil && !found {
		err = nacre.Errorf(nacre.CodeNotFound, "no request has this key")
	}
	return r, err
}

func (db *DB) putRequest(ctx context.Context, c conn, r nacre.KeptRequest) error {
	text, err := json.Marshal(requestBody{Hash: r.Body[:], Taken: r.Taken, Status: r.Status, ContentType: r.ContentType})
	if err != nil {
		return err
	}
	_, err = c.exec(ctx, `UPDATE requests SET holder = ?, lease = ?, body = ?, answer = ? WHERE team_id = ? AND route = ? AND key = ?`,
		r.Holder, r.Lease.UnixMicro(), string(text), db.sealer.keep(sealName(r.RequestKey), r.Answer), string(r.TeamID), r.Route, r.Key)
	return err
}

func deleteRequest(ctx context.Context, c conn, k nacre.RequestKey) error {
	_, err := c.exec(ctx, `DELETE FROM requests WHERE team_id = ? AND route = ? AND key = ?`, string(k.TeamID), k.Route, k.Key)
	return err
}

// held changes a request that the holder holds; errLost when it does not.
func (db *DB) held(ctx context.Context, k nacre.RequestKey, holder string, change func(context.Context, conn, nacre.KeptRequest) error) error {
	if holder == "" || !plain(holder) || !plain(string(k.TeamID)) || !plain(k.Route) || !plain(k.Key) {
		return errLost()
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		r, err := db.getRequest(ctx, c, k)
		if nacre.IsCode(err, nacre.CodeNotFound) || err == nil && r.Holder != holder {
			return errLost()
		}
		if err != nil {
			return err
		}
		return change(ctx, c, r)
	})
}

// RenewRequest implements nacre.RequestStore.
func (db *DB) RenewRequest(ctx context.Context, k nacre.RequestKey, holder string, until time.Time) error {
	return db.held(ctx, k, holder, func(ctx context.Context, c conn, r nacre.KeptRequest) error {
		r.Lease = until
		return db.putRequest(ctx, c, r)
	})
}

// AnswerRequest implements nacre.RequestStore. An answer of more than 1 MiB is
// CodeInvalid.
func (db *DB) AnswerRequest(ctx context.Context, r nacre.KeptRequest) error {
	if r.Status == 0 || len(r.Answer) > maxRequestAnswer || !plain(r.ContentType) {
		return nacre.Errorf(nacre.CodeInvalid, "an answer needs a status and has at most %d bytes", maxRequestAnswer)
	}
	return db.held(ctx, r.RequestKey, r.Holder, func(ctx context.Context, c conn, old nacre.KeptRequest) error {
		old.Holder, old.Status, old.ContentType, old.Answer = "", r.Status, r.ContentType, r.Answer
		return db.putRequest(ctx, c, old)
	})
}

// ForgetRequest implements nacre.RequestStore.
func (db *DB) ForgetRequest(ctx context.Context, k nacre.RequestKey, holder string) error {
	err := db.held(ctx, k, holder, func(ctx context.Context, c conn, _ nacre.KeptRequest) error {
		return deleteRequest(ctx, c, k)
	})
	var lost *nacre.Error
	if errors.As(err, &lost) && lost.Code == nacre.CodeConflict {
		return nil
	}
	return err
}

// PurgeRequests implements nacre.RequestStore.
func (db *DB) PurgeRequests(ctx context.Context, before time.Time, limit int) (int, error) {
	var n int64
	err := db.write(ctx, func(ctx context.Context, c conn) (err error) {
		n, err = c.exec(ctx, `DELETE FROM requests WHERE (team_id, route, key) IN (SELECT team_id, route, key FROM requests`+
			db.d.indexed("requests_created")+` WHERE created_at < ? ORDER BY created_at LIMIT ?)`, before.UnixMicro(), limit)
		return err
	})
	return int(n), err
}
