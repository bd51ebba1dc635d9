package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// ImportKeys implements manage.Writer, in three statements whatever their number. A
// hash is there already when it is under any configured pepper.
func (c *Change) ImportKeys(ctx context.Context, t manage.Tenant, keys []manage.ImportedKey) (duplicates []int, err error) {
	known, err := c.knownHashes(ctx, keys)
	if err != nil {
		return nil, err
	}
	fresh, secrets := make([]*manage.Key, 0, len(keys)), make([]newSecret, 0, len(keys))
	for i := range keys {
		k := &keys[i].Key
		if len(k.Secrets) != 1 {
			return nil, errOneSecret
		}
		if known[keys[i].Hash] {
			duplicates = append(duplicates, i)
			continue
		}
		known[keys[i].Hash] = true
		fresh, secrets = append(fresh, k), append(secrets, newSecret{k.ID, &k.Secrets[0], keys[i].Hash})
	}
	if err := c.insertKeys(ctx, t, fresh); err != nil {
		return nil, err
	}
	return duplicates, c.insertSecrets(ctx, t, secrets)
}

// knownHashes tells which hashes any organization's key, any caller or any admin has.
// Nothing more is told of it. One secret must not open two things.
func (c *Change) knownHashes(ctx context.Context, keys []manage.ImportedKey) (map[authz.SecretHash]bool, error) {
	hashes := make(map[authz.Digest]authz.SecretHash, len(keys))
	var digests pq.ByteaArray
	for i := range keys {
		for _, d := range c.peppers.AppendDigests(nil, keys[i].Hash) {
			hashes[d] = keys[i].Hash
			digests = append(digests, d[:])
		}
	}
	var found [][]byte
	err := c.tx.SelectContext(ctx, &found, `
		SELECT digest FROM key_secrets WHERE digest = ANY ($1)
		UNION ALL SELECT digest FROM caller_tokens WHERE digest = ANY ($1)
		UNION ALL SELECT digest FROM admin_tokens WHERE digest = ANY ($1)`, digests)
	if err != nil {
		return nil, translate("look for imported keys", err)
	}
	known := make(map[authz.SecretHash]bool, len(keys))
	for _, d := range found {
		known[hashes[authz.Digest(d)]] = true
	}
	return known, nil
}

// DeclareFormat implements manage.Writer. Formats are within Everyone alone;
// declaring one again changes nothing.
func (c *Change) DeclareFormat(ctx context.Context, t manage.Tenant, f authz.ForeignFormat) (declared bool, err error) {
	var count int
	var known sql.NullBool
	err = c.tx.QueryRowxContext(ctx, `
		SELECT count(*), bool_or(prefix = $2 AND length = $3 AND alphabet = $4) FROM foreign_formats WHERE $1::boolean`,
		t.Everyone(), f.Prefix, f.Length, f.Alphabet).Scan(&count, &known)
	if err != nil {
		return false, translate("read the foreign formats", err)
	}
	if known.Bool {
		return false, nil
	}
	if count >= authz.MaxForeignFormats {
		return false, &authz.Error{
			Kind: authz.KindConflict, Code: "too_many_formats",
			Message: fmt.Sprintf("%d forms of foreign secrets are declared, and there cannot be more", authz.MaxForeignFormats),
		}
	}
	err = c.exec(ctx, "declare a foreign format", `
		INSERT INTO foreign_formats (prefix, length, alphabet, revision)
		SELECT $2::text, $3::integer, $4::text, $5::bigint WHERE $1::boolean`,
		t.Everyone(), f.Prefix, f.Length, f.Alphabet, c.revision)
	return err == nil, err
}

// readFormats reads all foreign formats: they are few.
func readFormats(ctx context.Context, db *sqlx.DB) (*[]authz.ForeignFormat, error) {
	var rows []struct {
		Prefix   string `db:"prefix"`
		Length   int    `db:"length"`
		Alphabet string `db:"alphabet"`
	}
	err := db.SelectContext(ctx, &rows, `SELECT prefix, length, alphabet FROM foreign_formats ORDER BY prefix, length LIMIT $1`,
		authz.MaxForeignFormats)
	if err != nil {
		return nil, translate("read the foreign formats", err)
	}
	formats := make([]authz.ForeignFormat, len(rows))
	for i, r := range rows {
		formats[i] = authz.ForeignFormat{Prefix: r.Prefix, Length: r.Length, Alphabet: r.Alphabet}
	}
	return &formats, nil
}

// AcceptsForeign tells whether text has a declared form of secrets that another
// system has made. It costs no I/O and no memory, and is false while none is known.
func (s *Store) AcceptsForeign(text string) bool {
	formats := s.formats.Load()
	if formats == nil {
		return false
	}
	for i := range *formats {
		if (*formats)[i].Accepts(text) {
			return true
		}
	}
	return false
}
