//! Parquet files, read row by row and only the columns that are needed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::fields::Layout;
use super::{ROW_LIMIT_BYTES, ReadOptions, Rows};
use crate::Error;
use crate::example::Origin;

/// Reads all rows of a file.
pub(super) fn read(path: &Arc<Path>, options: &ReadOptions) -> Result<Rows, Error> {
    // The library answers some damaged files with a panic; to the caller that is one more damaged file.
    catch_unwind(AssertUnwindSafe(|| read_rows(path, options))).unwrap_or_else(|_| {
        Err(Error::Parquet { path: path.to_path_buf(), message: "its structure contradicts itself".into() })
    })
}

fn read_rows(path: &Arc<Path>, options: &ReadOptions) -> Result<Rows, Error> {
    let damaged =
        |error: ParquetError| Error::Parquet { path: path.to_path_buf(), message: error.to_string() };
    let file = std::fs::File::open(path).map_err(|source| Error::io(path, source))?;
    let file = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = file.metadata().file_metadata().schema();
    let columns: Vec<String> = schema.get_fields().iter().map(|column| column.name().to_owned()).collect();
    let is_list =
        |name: &str| schema.get_fields().iter().any(|column| column.name() == name && column.is_group());
    let layout = Layout::choose(&Origin::row(path, 1), &columns, is_list, options)?;
    let wanted = layout.fields();
    check_codecs(path, &file, &wanted)?;
    let names = class_names(&file, layout.label_field());

    let fields =
        schema.get_fields().iter().filter(|column| wanted.contains(&column.name())).cloned().collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(damaged)?;
    let (mut examples, mut number) = (Vec::new(), 0);
    for group in 0..file.num_row_groups() {
        let group = file.get_row_group(group).map_err(damaged)?;
        for row in RowIter::from_row_group(Some(projection.clone()), &*group).map_err(damaged)? {
            number += 1;
            let at = Origin::row(path, number);
            let row = object(row.map_err(damaged)?);
            if row.values().map(bytes).sum::<usize>() > ROW_LIMIT_BYTES {
                return Err(Error::RowTooLarge { at, limit_bytes: ROW_LIMIT_BYTES });
            }
            let mut example = layout.example(&row, at)?;
            if let Some(name) = names.get(&example.label) {
                example.label.clone_from(name);
            }
            examples.push(example);
        }
    }
    Ok((!examples.is_empty()).then_some((layout, examples)))
}

/// Refuses codecs that are not built in before any page is read.
fn check_codecs(path: &Path, file: &dyn FileReader, wanted: &[&str]) -> Result<(), Error> {
    for group in file.metadata().row_groups() {
        for column in group.columns() {
            let known = matches!(
                column.compression(),
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_)
            );
            let name = column.column_path().parts().first().map_or("", String::as_str);
            if !known && wanted.contains(&name) {
                let codec = column.compression().to_string();
                let codec = codec.split('(').next().unwrap_or_default().to_owned();
                return Err(Error::Codec { path: path.to_owned(), column: name.to_owned(), codec });
            }
        }
    }
    Ok(())
}

/// The label names that the Hugging Face `datasets` library keeps beside a column of numbers, by number.
fn class_names(file: &dyn FileReader, label_field: &str) -> HashMap<String, String> {
    let entries = file.metadata().file_metadata().key_value_metadata();
    let entry = entries.into_iter().flatten().find(|entry| entry.key == "huggingface");
    let info = entry.and_then(|entry| serde_json::from_str::<Value>(entry.value.as_deref()?).ok());
    let names = info.as_ref().and_then(|info| info["info"]["features"][label_field]["names"].as_array());
    let named = names.into_iter().flatten().enumerate();
    named.filter_map(|(number, name)| Some((number.to_string(), name.as_str()?.to_owned()))).collect()
}

fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(&field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::Bool(*truth),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Str(text) => Value::String(text.clone()),
        // Writers that leave out the text annotation still mostly mean text.
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::Group(row) => row
            .get_column_iter()
            .map(|(name, field)| (name.clone(), value(field)))
            .collect::<Map<_, _>>()
            .into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        other => Value::String(other.to_string()),
    }
}

/// Bytes of the texts inside a value.
fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(bytes).sum(),
        Value::Object(fields) => fields.values().map(bytes).sum(),
        _ => 0,
    }
}
