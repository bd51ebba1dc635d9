-- +goose Up

-- The one row whose lock makes revision order commit order: the first statement
-- of every management transaction is an UPDATE of it.
CREATE TABLE revision (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    n        bigint  NOT NULL CHECK (n > 0)
);
INSERT INTO revision (n) VALUES (1);

-- What this database is, for example deployment=dev.
CREATE TABLE settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);

-- Which peppers rows have been made under; never a pepper.
CREATE TABLE peppers (
    id          text PRIMARY KEY,
    fingerprint text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE organizations (
    id           uuid PRIMARY KEY,
    external_id  text UNIQUE CHECK (external_id <> ''),
    name         text NOT NULL CHECK (name <> ''),
    plan         text NOT NULL CHECK (plan <> ''),
    metadata     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    suspended_at timestamptz,
    deleted_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    revision     bigint NOT NULL
);
CREATE INDEX organizations_revision ON organizations (revision);

CREATE TABLE api_keys (
    id                        uuid PRIMARY KEY,
    organization_id           uuid NOT NULL REFERENCES organizations,
    external_id               text CHECK (external_id <> ''),
    name                      text NOT NULL CHECK (name <> ''),
    environment               text NOT NULL CHECK (environment IN ('live', 'test')),
    scopes                    text[] NOT NULL,
    created_at                timestamptz NOT NULL DEFAULT now(),
    created_by                text NOT NULL,
    expires_at                timestamptz,
    revoked_at                timestamptz,
    disabled_at               timestamptz,
    restricted                boolean NOT NULL DEFAULT false,
    allowed_cidrs             cidr[] NOT NULL DEFAULT '{}',
    rate_limit_rate           integer CHECK (rate_limit_rate > 0),
    rate_limit_period_seconds integer CHECK (rate_limit_period_seconds > 0),
    rate_limit_burst          integer CHECK (rate_limit_burst > 0),
    metadata                  jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    version                   integer NOT NULL DEFAULT 1,
    revision                  bigint NOT NULL,
    CHECK (num_nulls(rate_limit_rate, rate_limit_period_seconds, rate_limit_burst) IN (0, 3))
);
CREATE INDEX api_keys_organization ON api_keys (organization_id, id);
CREATE INDEX api_keys_revision ON api_keys (revision);
CREATE UNIQUE INDEX api_keys_external_id ON api_keys (organization_id, external_id) WHERE external_id IS NOT NULL;

-- A key's secrets: their digests, never themselves. A change here also takes the
-- key's row to the same revision.
CREATE TABLE key_secrets (
    digest     bytea PRIMARY KEY CHECK (length(digest) = 32),
    id         uuid NOT NULL UNIQUE,
    key_id     uuid NOT NULL REFERENCES api_keys,
    pepper_id  text NOT NULL REFERENCES peppers,
    hint       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX key_secrets_key ON key_secrets (key_id);

CREATE TABLE callers (
    id           uuid PRIMARY KEY,
    name         text NOT NULL UNIQUE CHECK (name <> ''),
    environments text[] NOT NULL CHECK (environments <@ ARRAY['live', 'test']),
    permissions  text[] NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    disabled_at  timestamptz,
    revoked_at   timestamptz,
    revision     bigint NOT NULL
);
CREATE INDEX callers_revision ON callers (revision);

CREATE TABLE caller_tokens (
    digest     bytea PRIMARY KEY CHECK (length(digest) = 32),
    id         uuid NOT NULL UNIQUE,
    caller_id  uuid NOT NULL REFERENCES callers,
    pepper_id  text NOT NULL REFERENCES peppers,
    hint       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX caller_tokens_caller ON caller_tokens (caller_id);

CREATE TABLE admins (
    id              uuid PRIMARY KEY,
    organization_id uuid REFERENCES organizations,
    name            text NOT NULL CHECK (name <> ''),
    role            text NOT NULL CHECK (role IN ('platform_admin', 'owner', 'developer', 'auditor')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    revoked_at      timestamptz,
    revision        bigint NOT NULL,
    CHECK ((role = 'platform_admin') = (organization_id IS NULL))
);
CREATE INDEX admins_revision ON admins (revision);

CREATE TABLE admin_tokens (
    digest     bytea PRIMARY KEY CHECK (length(digest) = 32),
    id         uuid NOT NULL UNIQUE,
    admin_id   uuid NOT NULL REFERENCES admins,
    pepper_id  text NOT NULL REFERENCES peppers,
    hint       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX admin_tokens_admin ON admin_tokens (admin_id);

-- The live replicas and how far each has applied changes.
CREATE TABLE replicas (
    id               uuid PRIMARY KEY,
    started_at       timestamptz NOT NULL,
    heartbeat_at     timestamptz NOT NULL,
    applied_revision bigint NOT NULL
);

-- One chain of management changes for the platform (no organization) and one for
-- each organization; mac is an HMAC under a key outside the database.
CREATE TABLE audit_log (
    id              uuid PRIMARY KEY,
    organization_id uuid REFERENCES organizations,
    sequence        bigint NOT NULL CHECK (sequence > 0),
    at              timestamptz NOT NULL DEFAULT now(),
    actor_type      text NOT NULL,
    actor_id        text NOT NULL,
    action          text NOT NULL,
    target          text NOT NULL,
    before          jsonb,
    after           jsonb,
    address         inet,
    request_id      text,
    previous_mac    bytea,
    mac             bytea NOT NULL
);
CREATE UNIQUE INDEX audit_log_organization ON audit_log (organization_id, sequence) WHERE organization_id IS NOT NULL;
CREATE UNIQUE INDEX audit_log_platform ON audit_log (sequence) WHERE organization_id IS NULL;

-- +goose Down
DROP TABLE audit_log, replicas, admin_tokens, admins, caller_tokens, callers, key_secrets, api_keys,
    organizations, peppers, settings, revision;
