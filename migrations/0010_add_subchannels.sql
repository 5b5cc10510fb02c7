ALTER TABLE Channel ADD COLUMN parent_id INTEGER REFERENCES Channel(id) ON DELETE CASCADE;

CREATE INDEX idx_channel_parent ON Channel(parent_id) WHERE parent_id IS NOT NULL;
