//! Columns back to records. Columns that a recording lacks, because it is older or was not asked for them, are as null;
//! those that are not known here, because it is newer, are left out.

use super::columns::{COLUMNS, Kind, Place, ROOT};
use crate::event::model::Record;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use serde_json::{Map, Value};

/// Objects of a drop that are there even if nothing is known of them.
const ALWAYS: [&str; 6] = ["", "source", "destination", "network", "packet", "drop"];

/// The records of a batch of rows; one that makes no sense is an error of its own.
pub(super) struct Rows<'b> {
    batch: &'b RecordBatch,
    /// The batch's column for each of ours.
    of: Vec<Option<usize>>,
    next: usize,
}

impl<'b> Rows<'b> {
    /// Finds the columns by their names.
    pub(super) fn new(batch: &'b RecordBatch) -> Self {
        let schema = batch.schema_ref();
        let of = COLUMNS.iter().map(|column| schema.index_of(&column.name()).ok()).collect();
        Self { batch, of, next: 0 }
    }

    fn record(&self, row: usize) -> Result<Record, serde_json::Error> {
        if let Some(Value::Object(stalled)) = self.column("stalled", row) {
            return serde_json::from_value(Value::Object(stalled));
        }
        serde_json::from_value(self.value(&ROOT, "", row))
    }

    fn column(&self, name: &str, row: usize) -> Option<Value> {
        match ROOT.field(name)? {
            Place::Column(number) => self.scalar(*number, row),
            Place::Object(_) => None,
        }
    }

    fn value(&self, place: &Place, path: &str, row: usize) -> Value {
        let fields = match place {
            Place::Column(number) => return self.scalar(*number, row).unwrap_or(Value::Null),
            Place::Object(fields) => fields,
        };
        let mut object = Map::new();
        for (name, place) in fields {
            let inner = match place {
                Place::Column(_) => "",
                Place::Object(_) if path.is_empty() => name,
                // Below the first level no object is always there.
                Place::Object(_) => ".",
            };
            let value = self.value(place, inner, row);
            if !value.is_null() {
                object.insert((*name).to_owned(), value);
            }
        }
        if object.is_empty() && !ALWAYS.contains(&path) { Value::Null } else { Value::Object(object) }
    }

    /// A value; `None` for null, and where the column is of another kind than ours.
    fn scalar(&self, number: usize, row: usize) -> Option<Value> {
        let column = COLUMNS.get(number)?;
        let array = self.batch.column((*self.of.get(number)?)?);
        if array.is_null(row) {
            return None;
        }
        match column.kind {
            Kind::Text => array.as_string_opt::<i32>().map(|it| Value::from(it.value(row))),
            Kind::Json => serde_json::from_str(array.as_string_opt::<i32>()?.value(row)).ok(),
            Kind::Bool => array.as_boolean_opt().map(|it| Value::from(it.value(row))),
            Kind::Short => array.as_primitive_opt::<Int32Type>().map(|it| Value::from(it.value(row))),
            Kind::Long => array.as_primitive_opt::<Int64Type>().map(|it| Value::from(it.value(row))),
            Kind::Time => {
                let microseconds = array.as_primitive_opt::<TimestampMicrosecondType>()?.value(row);
                let time = crate::event::model::Timestamp(i128::from(microseconds) * 1000);
                Some(Value::from(time.to_string()))
            }
        }
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Record, serde_json::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.next;
        self.next += 1;
        (row < self.batch.num_rows()).then(|| self.record(row))
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
        columns[index] = std::sync::Arc::new(arrow_array::StringArray::from(vec!["weather", "drop"]));
        let batch = RecordBatch::try_new(batch.schema(), columns).unwrap();
        let read: Vec<bool> = Rows::new(&batch).map(|row| row.is_ok()).collect();
        assert_eq!(read, [false, true]);
    }
}
