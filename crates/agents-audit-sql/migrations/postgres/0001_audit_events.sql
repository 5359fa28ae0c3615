CREATE TABLE audit_events (
    -- The order of the trail: commits happen in this order, see `database/postgres.rs`.
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    "timestamp" TIMESTAMPTZ NOT NULL,
    session_id TEXT,
    agent_id TEXT,
    user_id TEXT,
    -- 0 debug, 1 info, 2 warning, 3 error, 4 critical.
    severity SMALLINT NOT NULL,
    -- The event, as it was given. JSON and not JSONB: it is kept letter by letter, and may hold \u0000.
    record JSON NOT NULL
);
CREATE UNIQUE INDEX audit_events_event_id ON audit_events (event_id);
CREATE INDEX audit_events_session ON audit_events (session_id, seq) WHERE session_id IS NOT NULL;
CREATE INDEX audit_events_agent ON audit_events (agent_id, seq) WHERE agent_id IS NOT NULL;
CREATE INDEX audit_events_user ON audit_events (user_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX audit_events_type ON audit_events (event_type, seq);
CREATE INDEX audit_events_timestamp ON audit_events ("timestamp");
CREATE INDEX audit_events_severity ON audit_events (severity, seq) WHERE severity >= 2;
