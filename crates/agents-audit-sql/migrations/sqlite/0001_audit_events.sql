CREATE TABLE audit_events (
    -- The order of the trail. AUTOINCREMENT: a number is never used again.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    -- UTC, as YYYY-MM-DD HH:MM:SS.ffffff, which sorts as text.
    timestamp TEXT NOT NULL,
    session_id TEXT,
    agent_id TEXT,
    user_id TEXT,
    -- 0 debug, 1 info, 2 warning, 3 error, 4 critical.
    severity INTEGER NOT NULL,
    -- The event, as it was given.
    record TEXT NOT NULL
);
CREATE UNIQUE INDEX audit_events_event_id ON audit_events (event_id);
CREATE INDEX audit_events_session ON audit_events (session_id, seq) WHERE session_id IS NOT NULL;
CREATE INDEX audit_events_agent ON audit_events (agent_id, seq) WHERE agent_id IS NOT NULL;
CREATE INDEX audit_events_user ON audit_events (user_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX audit_events_type ON audit_events (event_type, seq);
CREATE INDEX audit_events_timestamp ON audit_events (timestamp);
CREATE INDEX audit_events_severity ON audit_events (severity, seq) WHERE severity >= 2;
