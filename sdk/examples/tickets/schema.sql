CREATE TABLE IF NOT EXISTS tickets (
    id           bigint GENERATED ALWAYS AS IDENTITY (START WITH 1001) PRIMARY KEY,
    organization text NOT NULL,
    environment  text NOT NULL CHECK (environment IN ('live', 'test')),
    subject      text NOT NULL,
    body         text NOT NULL,
    status       text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'pending', 'closed')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- Pages are read in this order, and messages hang on it.
    UNIQUE (organization, environment, id)
);

-- A message cannot belong to another tenant than its ticket.
CREATE TABLE IF NOT EXISTS ticket_messages (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization text NOT NULL,
    environment  text NOT NULL,
    ticket_id    bigint NOT NULL,
    body         text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (organization, environment, ticket_id)
        REFERENCES tickets (organization, environment, id) ON DELETE CASCADE
);

CREATE INDEX IF NOT EXISTS ticket_messages_of_ticket
    ON ticket_messages (organization, environment, ticket_id, id);
