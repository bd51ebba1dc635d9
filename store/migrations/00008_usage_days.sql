-- +goose Up

-- Replicas that run wait for these locks too, with what they have counted.
SET LOCAL lock_timeout = '3s';

-- Decisions by day (UTC), added up from usage_hours once a day is over: hours are forgotten
-- sooner. A month is a partition, as there.
CREATE TABLE usage_days (
    day             date NOT NULL,
    organization_id uuid NOT NULL,
    key_id          uuid NOT NULL,
    secret_id       uuid NOT NULL,
    caller_id       uuid NOT NULL,
    shape_id        uuid NOT NULL,
    code            text NOT NULL,
    requests        bigint NOT NULL CHECK (requests > 0),
    PRIMARY KEY (key_id, day, shape_id, caller_id, secret_id, code)
) PARTITION BY RANGE (day);
CREATE TABLE usage_days_default PARTITION OF usage_days DEFAULT;
CREATE INDEX usage_days_organization ON usage_days (organization_id, day);
CREATE INDEX usage_days_day ON usage_days USING brin (day);

-- Which days usage_days tells. Days are added up in their order, those without usage too; one
-- that has changed since has a NULL, and usage_hours tells it until it is added up anew.
CREATE TABLE usage_days_done (
    day       date PRIMARY KEY,
    rolled_at timestamptz
);

-- Requests by the end client's network, in place of its address. ::/0 are all those for which
-- a key had no room on a day; ::/128 are those whose address the caller did not tell. scopes
-- are what the requests needed, with spaces between.
CREATE TABLE usage_networks (
    day             date NOT NULL,
    organization_id uuid NOT NULL,
    key_id          uuid NOT NULL,
    scopes          text NOT NULL,
    network         cidr NOT NULL,
    allowed         boolean NOT NULL,
    requests        bigint NOT NULL CHECK (requests > 0),
    PRIMARY KEY (key_id, day, network, scopes, allowed)
) PARTITION BY RANGE (day);
CREATE TABLE usage_networks_default PARTITION OF usage_networks DEFAULT;
CREATE INDEX usage_networks_organization ON usage_networks (organization_id, day);
CREATE INDEX usage_networks_day ON usage_networks USING brin (day);

-- When each scope of a key was first and last exercised: by allowed requests that needed it.
CREATE TABLE scope_uses (
    key_id        uuid NOT NULL,
    scope         text NOT NULL,
    first_used_at timestamptz NOT NULL,
    used_at       timestamptz NOT NULL,
    caller_id     uuid,
    network       cidr,
    PRIMARY KEY (key_id, scope)
) WITH (fillfactor = 80);

-- Of the last use; what was used before this column was there has no first one.
ALTER TABLE secret_uses
    ADD COLUMN first_used_at timestamptz,
    ADD COLUMN caller_id uuid,
    ADD COLUMN network cidr;

-- The first day that usage_hours may have to tell: with it, months that are added up are not
-- even looked into.
-- +goose StatementBegin
CREATE FUNCTION usage_open_day() RETURNS date LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN bool_or(rolled_at IS NOT NULL)
        THEN LEAST(min(day) FILTER (WHERE rolled_at IS NULL), max(day) + 1)
        ELSE '-infinity'::date END
    FROM usage_days_done
$$;
-- +goose StatementEnd

-- The usage of all days from since to before until, each request once: a day may have several
-- rows of the same, to be added up. It is inlined, so that a WHERE reaches the tables.
-- +goose StatementBegin
CREATE FUNCTION usage_by_day(since date, until date) RETURNS TABLE (
    day date, organization_id uuid, key_id uuid, secret_id uuid, caller_id uuid, shape_id uuid, code text, requests bigint
) LANGUAGE sql STABLE AS $$
    SELECT d.day, d.organization_id, d.key_id, d.secret_id, d.caller_id, d.shape_id, d.code, d.requests
    FROM usage_days d
    WHERE d.day >= $1 AND d.day < $2
        AND d.day IN (SELECT x.day FROM usage_days_done x WHERE x.rolled_at IS NOT NULL)
    UNION ALL
    SELECT (u.hour AT TIME ZONE 'UTC')::date, u.organization_id, u.key_id, u.secret_id, u.caller_id, u.shape_id, u.code, u.requests
    FROM usage_hours u
    WHERE u.hour >= $1::timestamp AT TIME ZONE 'UTC' AND u.hour < $2::timestamp AT TIME ZONE 'UTC'
        AND u.hour >= (SELECT usage_open_day()::timestamp AT TIME ZONE 'UTC')
        AND NOT EXISTS (SELECT FROM usage_days_done x WHERE x.day = (u.hour AT TIME ZONE 'UTC')::date AND x.rolled_at IS NOT NULL)
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION usage_by_day(date, date);
DROP FUNCTION usage_open_day();
ALTER TABLE secret_uses DROP COLUMN first_used_at, DROP COLUMN caller_id, DROP COLUMN network;
DROP TABLE scope_uses, usage_networks, usage_days_done, usage_days;
