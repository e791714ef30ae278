//! Columns back to records: a deserialiser that takes each field of the event from where [`super::columns`] says. Columns that
//! a recording lacks, because it is older or was not asked for them, are as null; those that are not known here, because it is
//! newer, are left out.

use super::columns::{COLUMNS, Kind, Place, ROOT};
use crate::event::model::{Drop, Lost, Record};
use arrow_array::TimestampMicrosecondArray;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray};
use serde::Deserialize;
use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Error;

/// The records of a batch of rows; one that makes no sense is an error of its own.
pub(super) struct Rows<'b> {
    /// The batch's column for each of ours that has a value in any of its rows.
    columns: Vec<Option<Values<'b>>>,
    next: usize,
    length: usize,
}

/// A column's values.
#[derive(Clone, Copy)]
enum Values<'b> {
    Text(&'b StringArray),
    Json(&'b StringArray),
    Short(&'b Int32Array),
    Long(&'b Int64Array),
    Bool(&'b BooleanArray),
    Time(&'b TimestampMicrosecondArray),
}

impl<'b> Values<'b> {
    /// `None` where the column is of another kind than ours, and where all is null.
    fn new(array: &'b ArrayRef, kind: Kind) -> Option<Self> {
        if array.null_count() == array.len() {
            return None;
        }
        match kind {
            Kind::Text => array.as_string_opt().map(Self::Text),
            Kind::Json => array.as_string_opt().map(Self::Json),
            Kind::Short => array.as_primitive_opt::<Int32Type>().map(Self::Short),
            Kind::Long => array.as_primitive_opt::<Int64Type>().map(Self::Long),
            Kind::Bool => array.as_boolean_opt().map(Self::Bool),
            Kind::Time => array.as_primitive_opt::<TimestampMicrosecondType>().map(Self::Time),
        }
    }

    fn get(self, row: usize) -> Option<Scalar<'b>> {
        match self {
            Self::Text(it) => it.is_valid(row).then(|| Scalar::Text(it.value(row))),
            Self::Json(it) => it.is_valid(row).then(|| Scalar::Json(it.value(row))),
            Self::Short(it) => it.is_valid(row).then(|| Scalar::Number(it.value(row).into())),
            Self::Long(it) => it.is_valid(row).then(|| Scalar::Number(it.value(row))),
            Self::Bool(it) => it.is_valid(row).then(|| Scalar::Bool(it.value(row))),
            // A timestamp takes a number for microseconds.
            Self::Time(it) => it.is_valid(row).then(|| Scalar::Number(it.value(row))),
        }
    }
}

impl<'b> Rows<'b> {
    /// Finds the columns by their names.
    pub(super) fn new(batch: &'b RecordBatch) -> Self {
        let schema = batch.schema_ref();
        let values = |column: &super::columns::Column| {
            let index = schema.index_of(&column.name()).ok()?;
            Values::new(batch.columns().get(index)?, column.kind)
        };
        Self { columns: COLUMNS.iter().map(values).collect(), next: 0, length: batch.num_rows() }
    }

    fn record(&self, row: usize) -> Result<Record, Error> {
        let root = Cell { rows: self, row, place: &ROOT };
        match self.text("type", row) {
            Some("drop") => Drop::deserialize(root).map(|drop| Record::Drop(Box::new(drop))),
            Some("lost") => Lost::deserialize(root).map(Record::Lost),
            Some("stalled") => serde_json::from_str(self.text("stalled", row).unwrap_or_default()),
            other => Err(Error::custom(format!("a record of type {other:?}"))),
        }
    }

    fn text(&self, name: &str, row: usize) -> Option<&'b str> {
        let Place::Column(number) = ROOT.field(name)? else { return None };
        match self.scalar(*number, row)? {
            Scalar::Text(text) | Scalar::Json(text) => Some(text),
            _ => None,
        }
    }

    fn scalar(&self, number: usize, row: usize) -> Option<Scalar<'b>> {
        self.columns.get(number).copied().flatten()?.get(row)
    }

    /// True if nothing is known of a place.
    fn is_null(&self, place: &Place, row: usize) -> bool {
        match place {
            Place::Column(number) => self.scalar(*number, row).is_none(),
            Place::Object(fields) => fields.iter().all(|(_, place)| self.is_null(place, row)),
        }
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.next;
        self.next += 1;
        (row < self.length).then(|| self.record(row))
    }
}

/// A place in a row.
#[derive(Clone, Copy)]
struct Cell<'r, 'b> {
    rows: &'r Rows<'b>,
    row: usize,
    place: &'static Place,
}

/// A value that is not null.
#[derive(Clone, Copy)]
enum Scalar<'b> {
    Text(&'b str),
    /// JSON text.
    Json(&'b str),
    Number(i64),
    Bool(bool),
}

impl<'b> Cell<'_, 'b> {
    fn scalar(self) -> Option<Scalar<'b>> {
        match self.place {
            Place::Column(number) => self.rows.scalar(*number, self.row),
            Place::Object(_) => None,
        }
    }
}

/// What is in JSON text is its own deserialiser's matter.
macro_rules! by_kind {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $method<V: Visitor<'b>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, Error> {
            match self.scalar() {
                Some(Scalar::Json(text)) => {
                    serde_json::Deserializer::from_str(text).$method($($argument,)* visitor)
                }
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'b> Deserializer<'b> for Cell<'_, 'b> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'b>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.scalar() {
            Some(Scalar::Text(text)) => visitor.visit_borrowed_str(text),
            Some(Scalar::Json(text)) => serde_json::Deserializer::from_str(text).deserialize_any(visitor),
            Some(Scalar::Number(number)) => visitor.visit_i64(number),
            Some(Scalar::Bool(is_so)) => visitor.visit_bool(is_so),
            None => match self.place {
                Place::Object(fields) => visitor.visit_map(Fields { of: self, left: fields, value: None }),
                Place::Column(_) => visitor.visit_unit(),
            },
        }
    }

    fn deserialize_option<V: Visitor<'b>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.rows.is_null(self.place, self.row) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'b>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'b>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.scalar() {
            Some(Scalar::Text(text)) => {
                StrDeserializer::<Error>::new(text).deserialize_enum(name, variants, visitor)
            }
            Some(Scalar::Json(text)) => {
                serde_json::Deserializer::from_str(text).deserialize_enum(name, variants, visitor)
            }
            _ => Err(Error::custom(format!("{name} is no text"))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'b>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    by_kind! {
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(length: usize);
        deserialize_tuple_struct(name: &'static str, length: usize);
        deserialize_map();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_identifier();
    }
}

/// The fields of an object. A scalar that is null is left out; whether an object without anything in it is there, its type
/// says.
struct Fields<'r, 'b> {
    of: Cell<'r, 'b>,
    left: &'static [(&'static str, Place)],
    value: Option<Cell<'r, 'b>>,
}

impl<'b> MapAccess<'b> for Fields<'_, 'b> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'b>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some(((name, place), left)) = self.left.split_first() {
            self.left = left;
            let cell = Cell { place, ..self.of };
            if matches!(place, Place::Object(_)) || cell.scalar().is_some() {
                self.value = Some(cell);
                return seed.deserialize(BorrowedStrDeserializer::new(name)).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'b>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let cell = self.value.take().ok_or_else(|| Error::custom("a value without a name"))?;
        seed.deserialize(cell)
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use super::super::example;
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let records = example::records();
        let mut rows = encode::Rows::new();
        for record in &records {
            rows.add(record).unwrap();
        }
        assert_eq!(rows.len(), records.len());
        let batch = rows.take().unwrap();
        let back: Vec<Record> = Rows::new(&batch).map(Result::unwrap).collect();
        assert_eq!(back, records);
        assert_eq!(rows.len(), 0);
    }

    #[test]
    fn older_and_newer_recordings_are_read() {
        let mut rows = encode::Rows::new();
        let record = example::drop();
        rows.add(&Record::Drop(Box::new(record.clone()))).unwrap();
        let batch = rows.take().unwrap();
        // An older one lacks columns, a newer one has others.
        let schema = batch.schema();
        let kept: Vec<usize> = schema
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| !field.name().starts_with("conntrack") && !field.name().ends_with("_pod"))
            .map(|(index, _)| index)
            .collect();
        let older = batch.project(&kept).unwrap();
        let Some(Ok(Record::Drop(back))) = Rows::new(&older).next() else { panic!("no drop") };
        assert_eq!((back.count, back.conntrack.is_none()), (record.count, true));
        assert_eq!(back.source.k8s.as_ref().and_then(|k8s| k8s.pod.clone()), None);
        assert_eq!(back.drop.netfilter, record.drop.netfilter);
    }

    #[test]
    fn a_row_without_sense_is_an_error_and_the_next_one_is_read() {
        let mut rows = encode::Rows::new();
        let mut odd = example::drop();
        odd.network.transport = Some("tcp".into());
        rows.add(&Record::Drop(Box::new(odd))).unwrap();
        rows.add(&Record::Drop(Box::new(example::drop()))).unwrap();
        let batch = rows.take().unwrap();
        let index = batch.schema().index_of("type").unwrap();
        let mut columns = batch.columns().to_vec();
        columns[index] = std::sync::Arc::new(StringArray::from(vec!["weather", "drop"]));
        let batch = RecordBatch::try_new(batch.schema(), columns).unwrap();
        let read: Vec<bool> = Rows::new(&batch).map(|row| row.is_ok()).collect();
        assert_eq!(read, [false, true]);
    }
}
