//! Records to columns: a serialiser that puts each field of the event where [`super::columns`] says.

use super::columns::{COLUMNS, Column, Kind, Place, ROOT, SCHEMA};
use crate::event::model::{Record, Timestamp};
use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Int32Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use serde::ser::{Impossible, Serialize, SerializeStruct, Serializer};
use std::fmt::Display;
use std::sync::Arc;

/// Rows that are being filled in.
#[derive(Debug)]
pub(super) struct Rows {
    builders: Vec<Builder>,
    length: usize,
}

/// A value that has no column, or one of another kind: the columns are behind the event.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misfit(String);

impl serde::ser::Error for Misfit {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

#[derive(Debug)]
enum Builder {
    Text(StringBuilder),
    Short(Int32Builder),
    Long(Int64Builder),
    Bool(BooleanBuilder),
    Time(TimestampMicrosecondBuilder),
}

impl Builder {
    fn new(column: &Column) -> Self {
        match column.kind {
            Kind::Text | Kind::Json => Self::Text(StringBuilder::new()),
            Kind::Short => Self::Short(Int32Builder::new()),
            Kind::Long => Self::Long(Int64Builder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::Time => Self::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(it) => it.len(),
            Self::Short(it) => it.len(),
            Self::Long(it) => it.len(),
            Self::Bool(it) => it.len(),
            Self::Time(it) => it.len(),
        }
    }

    fn put_null(&mut self) {
        match self {
            Self::Text(it) => it.append_null(),
            Self::Short(it) => it.append_null(),
            Self::Long(it) => it.append_null(),
            Self::Bool(it) => it.append_null(),
            Self::Time(it) => it.append_null(),
        }
    }

    fn put_text(&mut self, value: &str) -> Result<(), Misfit> {
        match self {
            Self::Text(it) => it.append_value(value),
            Self::Time(it) => it.append_value(microseconds(value)?),
            _ => return Err(Misfit(format!("{value:?} is no number"))),
        }
        Ok(())
    }

    fn put_number(&mut self, value: i64) -> Result<(), Misfit> {
        match self {
            Self::Short(it) => {
                it.append_value(
                    i32::try_from(value).map_err(|_| Misfit(format!("{value} has over 32 bits")))?,
                );
            }
            Self::Long(it) => it.append_value(value),
            _ => return Err(Misfit(format!("{value} is a number"))),
        }
        Ok(())
    }

    fn put_bool(&mut self, value: bool) -> Result<(), Misfit> {
        match self {
            Self::Bool(it) => it.append_value(value),
            _ => return Err(Misfit(format!("{value} is no text or number"))),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(it) => Arc::new(it.finish()),
            Self::Short(it) => Arc::new(it.finish()),
            Self::Long(it) => Arc::new(it.finish()),
            Self::Bool(it) => Arc::new(it.finish()),
            Self::Time(it) => Arc::new(it.finish()),
        }
    }
}

/// A time as it is printed, in microseconds.
fn microseconds(text: &str) -> Result<i64, Misfit> {
    let time: jiff::Timestamp = text.parse().map_err(|error| Misfit(format!("{text:?}: {error}")))?;
    Ok(time.as_microsecond())
}

impl Rows {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { builders: COLUMNS.iter().map(Builder::new).collect(), length: 0 }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Adds a row.
    ///
    /// # Errors
    /// If the event has something that no column is for; the row has what came before it then.
    pub(super) fn add(&mut self, record: &Record) -> Result<(), Misfit> {
        let put = match record {
            Record::Stalled(stalled) => self.add_stalled(record, stalled.time, &stalled.node),
            other => other.serialize(Writer { place: &ROOT, rows: self }),
        };
        self.length += 1;
        for builder in &mut self.builders {
            if builder.len() < self.length {
                builder.put_null();
            }
        }
        put
    }

    fn add_stalled(&mut self, record: &Record, time: Timestamp, node: &str) -> Result<(), Misfit> {
        let whole = serde_json::to_string(record).map_err(serde::ser::Error::custom)?;
        for (name, value) in
            [("type", "stalled"), ("time", &time.to_string()), ("node", node), ("stalled", &whole)]
        {
            if let Some(Place::Column(number)) = ROOT.field(name) {
                self.builder(*number)?.put_text(value)?;
            }
        }
        Ok(())
    }

    /// Takes the rows; none are left.
    ///
    /// # Errors
    /// If columns differ in length, which is a fault here.
    pub(super) fn take(&mut self) -> Result<RecordBatch, arrow_schema::ArrowError> {
        self.length = 0;
        RecordBatch::try_new(Arc::clone(&SCHEMA), self.builders.iter_mut().map(Builder::finish).collect())
    }

    fn builder(&mut self, number: usize) -> Result<&mut Builder, Misfit> {
        let length = self.length;
        let builder = self.builders.get_mut(number).filter(|builder| builder.len() == length);
        builder.ok_or_else(|| Misfit(format!("column {number} is filled in twice")))
    }
}

/// Writes a value to its place.
struct Writer<'a> {
    place: &'a Place,
    rows: &'a mut Rows,
}

impl<'a> Writer<'a> {
    fn builder(self) -> Result<&'a mut Builder, Misfit> {
        match self.place {
            Place::Column(number) => self.rows.builder(*number),
            Place::Object(_) => Err(Misfit("a value where an object should be".to_owned())),
        }
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Misfit> {
        let place = self.place.field(name).ok_or_else(|| Misfit(format!("no column is for {name}")))?;
        match place {
            Place::Column(number) if COLUMNS.get(*number).is_some_and(|it| it.kind == Kind::Json) => {
                let text = serde_json::to_string(value).map_err(serde::ser::Error::custom)?;
                if text != "null" {
                    self.rows.builder(*number)?.put_text(&text)?;
                }
                Ok(())
            }
            place => value.serialize(Writer { place, rows: self.rows }),
        }
    }
}

/// Refuses what no field of the event is.
macro_rules! refuse {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)*) => {$(
        fn $method(self $(, _: $argument)*) -> Result<$ok, Misfit> {
            Err(Misfit(concat!(stringify!($method), ": no column is of that kind").to_owned()))
        }
    )*};
}

/// Numbers.
macro_rules! numbers {
    ($($method:ident($kind:ty);)*) => {$(
        fn $method(self, value: $kind) -> Result<(), Misfit> {
            let value = i64::try_from(value).map_err(|_| Misfit(format!("{value} has over 63 bits")))?;
            self.builder()?.put_number(value)
        }
    )*};
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Misfit;
    type SerializeSeq = Impossible<(), Misfit>;
    type SerializeTuple = Impossible<(), Misfit>;
    type SerializeTupleStruct = Impossible<(), Misfit>;
    type SerializeTupleVariant = Impossible<(), Misfit>;
    type SerializeMap = Impossible<(), Misfit>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), Misfit>;

    numbers! {
        serialize_i8(i8); serialize_i16(i16); serialize_i32(i32); serialize_i64(i64);
        serialize_u8(u8); serialize_u16(u16); serialize_u32(u32); serialize_u64(u64);
    }

    refuse! {
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }

    fn serialize_bool(self, value: bool) -> Result<(), Misfit> {
        self.builder()?.put_bool(value)
    }

    fn serialize_str(self, value: &str) -> Result<(), Misfit> {
        self.builder()?.put_text(value)
    }

    fn serialize_none(self) -> Result<(), Misfit> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Misfit> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Misfit> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Misfit> {
        self.builder()?.put_text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Misfit> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Misfit> {
        Err(Misfit("a variant with a value: no column is of that kind".to_owned()))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Misfit> {
        Ok(self)
    }
}

impl SerializeStruct for Writer<'_> {
    type Ok = ();
    type Error = Misfit;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Misfit> {
        self.field(name, value)
    }

    fn end(self) -> Result<(), Misfit> {
        Ok(())
    }
}
