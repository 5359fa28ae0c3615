//! Reads one key beside a struct that knows nothing of it.
//!
//! `#[serde(flatten)]` does not go with `deny_unknown_fields`, and would buffer values that a configuration's source
//! converts by the type that is asked for. So the struct is read as it is, and this takes its own key out on the way.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Mutex, PoisonError},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, Visitor},
    forward_to_deserialize_any,
};

type Fields = &'static [&'static str];

/// Reads a struct `T`, and from the same map the key `key` of type `K`.
pub(super) fn with_key<'de, T: Deserialize<'de>, K: Deserialize<'de>, D: Deserializer<'de>>(
    key: &'static str,
    deserializer: D,
) -> Result<(T, Option<K>), D::Error> {
    let mut value = None;
    let own = T::deserialize(Intercept {
        inner: deserializer,
        key,
        value: &mut value,
    })?;
    Ok((own, value))
}

struct Intercept<'a, D, K> {
    inner: D,
    key: &'static str,
    value: &'a mut Option<K>,
}

impl<'de, D: Deserializer<'de>, K: Deserialize<'de>> Deserializer<'de> for Intercept<'_, D, K> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(MapVisitor {
            visitor,
            key: self.key,
            value: self.value,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: Fields,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let fields = and_key(fields, self.key);
        let visitor = MapVisitor {
            visitor,
            key: self.key,
            value: self.value,
        };
        self.inner.deserialize_struct(name, fields, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The fields of a struct and the key: made once for each, since they must live for ever.
fn and_key(fields: Fields, key: &'static str) -> Fields {
    static MADE: Mutex<Vec<(Fields, Fields)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let known = made
        .iter()
        .find(|(of, with)| *of == fields && with.last() == Some(&key));
    if let Some((_, with)) = known {
        return with;
    }
    let with: Fields = Box::leak(fields.iter().copied().chain([key]).collect());
    made.push((fields, with));
    with
}

struct MapVisitor<'a, V, K> {
    visitor: V,
    key: &'static str,
    value: &'a mut Option<K>,
}

impl<'de, V: Visitor<'de>, K: Deserialize<'de>> Visitor<'de> for MapVisitor<'_, V, K> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Map {
            inner: map,
            key: self.key,
            value: self.value,
            marker: PhantomData,
        })
    }
}

struct Map<'a, 'de, A, K> {
    inner: A,
    key: &'static str,
    value: &'a mut Option<K>,
    marker: PhantomData<&'de ()>,
}

impl<'de, A: MapAccess<'de>, K: Deserialize<'de>> MapAccess<'de> for Map<'_, 'de, A, K> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(key) = self.inner.next_key::<String>()? {
            if key != self.key {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            if self.value.is_some() {
                return Err(de::Error::duplicate_field(self.key));
            }
            *self.value = Some(self.inner.next_value()?);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Own {
        a: u8,
        b: Option<String>,
    }

    fn read(text: &str) -> Result<(Own, Option<u8>), serde_json::Error> {
        with_key("extra", &mut serde_json::Deserializer::from_str(text))
    }

    #[test]
    fn the_key_is_taken_out_and_the_rest_is_judged_as_ever() {
        let own = Own {
            a: 1,
            b: Some("x".to_owned()),
        };
        assert_eq!(read(r#"{"a": 1, "extra": 7, "b": "x"}"#).unwrap(), (own, Some(7)));
        assert_eq!(read("{}").unwrap(), (Own::default(), None));
        for (bad, word) in [
            (r#"{"c": 1}"#, "unknown field"),
            (r#"{"extra": "x"}"#, "invalid type"),
            (r#"{"extra": 1, "extra": 2}"#, "duplicate field"),
            ("7", "invalid type"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
