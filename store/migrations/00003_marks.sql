-- +goose Up

-- Each revision has a mark of its own, so that a replica notices when the revision it has
-- applied is not the one of that number in this database: an old copy was restored.
ALTER TABLE revision ADD COLUMN mark uuid NOT NULL DEFAULT gen_random_uuid();
CREATE TABLE revision_marks (
    n    bigint PRIMARY KEY,
    mark uuid NOT NULL
);
INSERT INTO revision_marks (n, mark) SELECT n, mark FROM revision;

-- Whoever takes the next revision, it gets its mark.
-- +goose StatementBegin
CREATE FUNCTION mark_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.mark := gen_random_uuid();
    INSERT INTO revision_marks (n, mark) VALUES (NEW.n, NEW.mark)
        ON CONFLICT (n) DO UPDATE SET mark = excluded.mark;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER mark BEFORE UPDATE ON revision FOR EACH ROW EXECUTE FUNCTION mark_revision();

ALTER TABLE replicas ADD COLUMN applied_mark uuid;

-- +goose Down
ALTER TABLE replicas DROP COLUMN applied_mark;
DROP TRIGGER mark ON revision;
DROP FUNCTION mark_revision();
DROP TABLE revision_marks;
ALTER TABLE revision DROP COLUMN mark;
