-- +goose Up

-- What policy saw of requests, without what tells one request from the next: no id, no
-- address. id is a hash of all the rest, so that replicas need not agree on it; seen_on is the
-- last day that it was counted.
CREATE TABLE usage_shapes (
    id                    uuid PRIMARY KEY,
    policy                text NOT NULL,
    method                text NOT NULL,
    path                  text NOT NULL,
    route                 text NOT NULL,
    ambiguous             boolean NOT NULL,
    collapsed             boolean NOT NULL,
    action                text NOT NULL,
    environment           text NOT NULL,
    resource_type         text NOT NULL,
    resource_id           boolean NOT NULL,
    resource_organization text NOT NULL,
    address               text NOT NULL,
    relative              bigint NOT NULL,
    browser               boolean NOT NULL,
    stale                 boolean NOT NULL,
    scopes                text[] NOT NULL,
    seen_on               date NOT NULL
);

-- Decisions by hour. The zero uuid stands for what is not known. A month is a partition, so
-- that to forget it costs nothing; what has none yet is in the default one.
CREATE TABLE usage_hours (
    hour            timestamptz NOT NULL,
    organization_id uuid NOT NULL,
    key_id          uuid NOT NULL,
    secret_id       uuid NOT NULL,
    caller_id       uuid NOT NULL,
    shape_id        uuid NOT NULL,
    code            text NOT NULL,
    requests        bigint NOT NULL CHECK (requests > 0),
    PRIMARY KEY (hour, key_id, shape_id, caller_id, secret_id, code)
) PARTITION BY RANGE (hour);
CREATE TABLE usage_hours_default PARTITION OF usage_hours DEFAULT;
CREATE INDEX usage_hours_organization ON usage_hours (organization_id, hour);

-- What has been written of it: a batch that is written again after an answer that was lost
-- counts once.
CREATE TABLE usage_batches (
    id         uuid PRIMARY KEY,
    written_at timestamptz NOT NULL
);
CREATE INDEX usage_batches_written_at ON usage_batches (written_at);

-- +goose Down
DROP TABLE usage_batches, usage_hours, usage_shapes;
