//! What the engine answers, read field by field: a field that is missing, null or of another type than expected is not
//! there, and never makes an answer unreadable. Podman 4, 5 and 6 write the same things in different shapes.

use std::collections::BTreeMap;

use agents_core::ContainerState;
use serde::Deserialize;
use serde_json::Value;

/// An answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct View(Value);

impl View {
    /// A text; numbers are none.
    pub(crate) fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer)?.as_str()
    }

    pub(crate) fn number(&self, pointer: &str) -> Option<i64> {
        let value = self.0.pointer(pointer)?;
        // Some engines write large numbers as floats.
        value.as_i64().or_else(|| value.as_f64().map(|number| number as i64))
    }

    /// A number that is a limit: 0 and below mean that there is none.
    pub(crate) fn limit(&self, pointer: &str) -> Option<u64> {
        u64::try_from(self.number(pointer)?).ok().filter(|limit| *limit > 0)
    }

    pub(crate) fn float(&self, pointer: &str) -> Option<f64> {
        self.0.pointer(pointer)?.as_f64()
    }

    pub(crate) fn flag(&self, pointer: &str) -> Option<bool> {
        self.0.pointer(pointer)?.as_bool()
    }

    /// The texts of a list; null is an empty one.
    pub(crate) fn texts(&self, pointer: &str) -> Vec<String> {
        self.items(pointer)
            .filter_map(|item| item.0.as_str().map(str::to_owned))
            .collect()
    }

    pub(crate) fn items(&self, pointer: &str) -> impl Iterator<Item = View> {
        let items = self.0.pointer(pointer).and_then(Value::as_array).cloned();
        items.unwrap_or_default().into_iter().map(View)
    }

    /// The texts of an object.
    pub(crate) fn map(&self, pointer: &str) -> BTreeMap<String, String> {
        let object = self.0.pointer(pointer).and_then(Value::as_object);
        object
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }

    /// The names in an object.
    pub(crate) fn keys(&self, pointer: &str) -> Vec<String> {
        let object = self.0.pointer(pointer).and_then(Value::as_object);
        object.into_iter().flatten().map(|(key, _)| key.clone()).collect()
    }
}

/// The engine's state of a container, which is about its first process.
pub(crate) fn state(status: &str) -> ContainerState {
    match status.to_ascii_lowercase().as_str() {
        "running" | "paused" | "stopping" => ContainerState::Running,
        "created" | "configured" | "initialized" => ContainerState::Created,
        // `exited`, `stopped`, `removing`, `dead`, and whatever a later engine knows.
        _ => ContainerState::Exited,
    }
}

/// When a container was created: a list has a number or a text, an inspection a text.
pub(crate) fn created(view: &View) -> jiff::Timestamp {
    let time = view
        .text("/Created")
        .and_then(|text| text.parse().ok())
        .or_else(|| jiff::Timestamp::from_second(view.number("/Created")?).ok());
    time.unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(json: &str) -> View {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn both_shapes_of_a_field_are_read() {
        let four = view(
            r#"{"Created":"2026-11-24T08:55:28.64Z","Config":{"Entrypoint":"","StopSignal":15,"Env":["A=b=c"],"Cmd":null}}"#,
        );
        let five = view(
            r#"{"Created":1795510528,"Config":{"Entrypoint":["/x"],"StopSignal":"SIGTERM","Env":null,"Cmd":["a"]}}"#,
        );
        assert_eq!(created(&four).as_second(), created(&five).as_second());
        assert_eq!(four.texts("/Config/Env"), ["A=b=c"]);
        assert!(five.texts("/Config/Env").is_empty() && four.texts("/Config/Cmd").is_empty());
        assert_eq!(four.limit("/Config/None"), None);
        assert_eq!(view(r#"{"a":1e3,"b":-1,"c":"x"}"#).limit("/a"), Some(1000));
        assert_eq!(view(r#"{"a":-1}"#).limit("/a"), None);
    }

    #[test]
    fn an_unknown_state_is_never_running() {
        assert_eq!(state("Running"), ContainerState::Running);
        assert_eq!(state("configured"), ContainerState::Created);
        assert_eq!(state("something-new"), ContainerState::Exited);
    }
}
