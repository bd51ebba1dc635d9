-- +goose Up

-- Metadata is its owner's text: jsonb would write 1e-16000 out in full, and neither keep
-- 1e2 nor the order of the members.
ALTER TABLE organizations
    DROP CONSTRAINT organizations_metadata_check,
    ALTER COLUMN metadata DROP DEFAULT,
    ALTER COLUMN metadata TYPE json USING metadata::json;
ALTER TABLE organizations
    ALTER COLUMN metadata SET DEFAULT '{}',
    ADD CONSTRAINT organizations_metadata_check CHECK (json_typeof(metadata) = 'object'),
    ADD COLUMN version integer NOT NULL DEFAULT 1 CHECK (version > 0);

-- The original lifetime, which a rotation gives afresh; NULL is for ever.
ALTER TABLE api_keys
    DROP CONSTRAINT api_keys_metadata_check,
    ALTER COLUMN metadata DROP DEFAULT,
    ALTER COLUMN metadata TYPE json USING metadata::json;
ALTER TABLE api_keys
    ALTER COLUMN metadata SET DEFAULT '{}',
    ADD CONSTRAINT api_keys_metadata_check CHECK (json_typeof(metadata) = 'object'),
    ADD COLUMN lifetime_seconds bigint CHECK (lifetime_seconds > 0);

-- A name is free again once its caller is revoked.
ALTER TABLE callers ADD COLUMN created_by text NOT NULL DEFAULT '', DROP CONSTRAINT callers_name_key;
CREATE UNIQUE INDEX callers_name ON callers (name) WHERE revoked_at IS NULL;

-- The lifetime that was granted; NULL where it was not kept.
ALTER TABLE admins
    ADD COLUMN created_by text NOT NULL DEFAULT '',
    ADD COLUMN lifetime_seconds bigint CHECK (lifetime_seconds > 0);
CREATE INDEX admins_organization ON admins (organization_id, id);

-- The MAC is over the very bytes: jsonb would put the members in another order, and
-- inet has no zones.
ALTER TABLE audit_log
    ALTER COLUMN before TYPE json USING before::json,
    ALTER COLUMN after TYPE json USING after::json,
    ALTER COLUMN address TYPE text USING host(address),
    ADD COLUMN revision bigint NOT NULL DEFAULT 0,
    ADD COLUMN key_id text NOT NULL DEFAULT '';
ALTER TABLE audit_log ALTER COLUMN revision DROP DEFAULT, ALTER COLUMN key_id DROP DEFAULT;
CREATE INDEX audit_log_target ON audit_log (organization_id, target, sequence);

-- Answers that have been given, for 24 hours.
CREATE TABLE idempotency (
    actor       uuid NOT NULL,
    operation   text NOT NULL,
    key_hash    bytea NOT NULL CHECK (length(key_hash) = 32),
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    answer      text NOT NULL,
    revision    bigint NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (actor, operation, key_hash)
);
CREATE INDEX idempotency_created ON idempotency (created_at);

-- The forms of secrets that other systems have made.
CREATE TABLE foreign_formats (
    prefix   text NOT NULL CHECK (prefix <> ''),
    length   integer NOT NULL CHECK (length > 0),
    alphabet text NOT NULL CHECK (alphabet <> ''),
    revision bigint NOT NULL,
    PRIMARY KEY (prefix, length, alphabet)
);

-- Digests that a secret has left for another pepper's, so that replicas forget them.
CREATE TABLE retired_digests (
    digest   bytea PRIMARY KEY CHECK (length(digest) = 32),
    revision bigint NOT NULL,
    at       timestamptz NOT NULL
);
CREATE INDEX retired_digests_revision ON retired_digests (revision);

-- When each secret was last used, to ten seconds: not in key_secrets, whose changes wake
-- every replica.
CREATE TABLE secret_uses (
    secret_id uuid PRIMARY KEY,
    key_id    uuid NOT NULL,
    used_at   timestamptz NOT NULL
);
CREATE INDEX secret_uses_key ON secret_uses (key_id);

ALTER TABLE replicas
    ADD COLUMN name text NOT NULL DEFAULT '',
    ADD COLUMN stale_max_ms bigint NOT NULL DEFAULT 300000 CHECK (stale_max_ms > 0),
    ADD COLUMN pepper_ids text[] NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE replicas DROP COLUMN name, DROP COLUMN stale_max_ms, DROP COLUMN pepper_ids;
DROP TABLE secret_uses, retired_digests, foreign_formats, idempotency;
DROP INDEX audit_log_target;
ALTER TABLE audit_log
    ALTER COLUMN before TYPE jsonb USING before::jsonb,
    ALTER COLUMN after TYPE jsonb USING after::jsonb,
    ALTER COLUMN address TYPE inet USING split_part(address, '%', 1)::inet,
    DROP COLUMN revision,
    DROP COLUMN key_id;
DROP INDEX admins_organization;
ALTER TABLE admins DROP COLUMN created_by, DROP COLUMN lifetime_seconds;
-- A name that was given again must not stop the way back.
UPDATE callers SET name = name || ' (revoked ' || id || ')' WHERE revoked_at IS NOT NULL;
DROP INDEX callers_name;
ALTER TABLE callers DROP COLUMN created_by, ADD CONSTRAINT callers_name_key UNIQUE (name);
ALTER TABLE api_keys
    DROP CONSTRAINT api_keys_metadata_check,
    ALTER COLUMN metadata DROP DEFAULT,
    ALTER COLUMN metadata TYPE jsonb USING metadata::jsonb,
    DROP COLUMN lifetime_seconds;
ALTER TABLE api_keys
    ALTER COLUMN metadata SET DEFAULT '{}',
    ADD CONSTRAINT api_keys_metadata_check CHECK (jsonb_typeof(metadata) = 'object');
ALTER TABLE organizations
    DROP CONSTRAINT organizations_metadata_check,
    ALTER COLUMN metadata DROP DEFAULT,
    ALTER COLUMN metadata TYPE jsonb USING metadata::jsonb,
    DROP COLUMN version;
ALTER TABLE organizations
    ALTER COLUMN metadata SET DEFAULT '{}',
    ADD CONSTRAINT organizations_metadata_check CHECK (jsonb_typeof(metadata) = 'object');
