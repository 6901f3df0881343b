//! Metadata values.

use super::cursor::{Cursor, Parsed};

/// What a value or an item of an array can be.
trait Scalar: Sized {
    /// The fewest bytes that one takes in the file.
    const LEAST_BYTES: usize;
    fn read(cursor: &mut Cursor) -> Parsed<Self>;
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($type:ty)*) => {
        $(impl Scalar for $type {
            const LEAST_BYTES: usize = size_of::<$type>();

            fn read(cursor: &mut Cursor) -> Parsed<Self> {
                cursor.array("a value").map(Self::from_le_bytes)
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        })*
    };
}

numbers! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

impl Scalar for bool {
    const LEAST_BYTES: usize = 1;

    fn read(cursor: &mut Cursor) -> Parsed<Self> {
        match cursor.array::<1>("a truth value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("a truth value before byte {} is {other}", cursor.at())),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Scalar for String {
    const LEAST_BYTES: usize = size_of::<u64>(); // its length

    fn read(cursor: &mut Cursor) -> Parsed<Self> {
        cursor.string("a string")
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_str(self, out);
    }
}

/// Stamps out [`Value`] and [`Array`] from variants with their type numbers, types and names in errors.
macro_rules! values {
    ($($name:ident $number:literal $type:ty, $words:literal;)*) => {
        /// A metadata value.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // the names of the types they hold
        pub enum Value {
            $($name($type),)*
            Array(Array),
        }

        /// Metadata values of one type.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum Array {
            $($name(Vec<$type>),)*
        }

        $(
            impl From<$type> for Value {
                fn from(value: $type) -> Self {
                    Self::$name(value)
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(values: Vec<$type>) -> Self {
                    Self::Array(Array::$name(values))
                }
            }
        )*

        impl Value {
            /// The type in words, for errors.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => $words,)*
                    Self::Array(_) => "an array",
                }
            }

            pub(super) fn read(cursor: &mut Cursor) -> Parsed<Self> {
                match cursor.u32("a value's type")? {
                    $($number => <$type>::read(cursor).map(Self::$name),)*
                    ARRAY => Array::read(cursor).map(Self::Array),
                    other => Err(format!("a value before byte {} has the unknown type {other}", cursor.at())),
                }
            }

            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(value) => {
                        u32::write(&$number, out);
                        value.write(out);
                    })*
                    Self::Array(array) => {
                        ARRAY.write(out);
                        array.write(out);
                    }
                }
            }
        }

        impl Array {
            fn read(cursor: &mut Cursor) -> Parsed<Self> {
                match cursor.u32("an array's type")? {
                    $($number => {
                        let count = cursor.count(<$type>::LEAST_BYTES, "an array's length")?;
                        (0..count).map(|_| <$type>::read(cursor)).collect::<Parsed<_>>().map(Self::$name)
                    })*
                    ARRAY => Err(format!("an array before byte {} holds arrays", cursor.at())),
                    other => Err(format!("an array before byte {} has the unknown type {other}", cursor.at())),
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(values) => {
                        u32::write(&$number, out);
                        (values.len() as u64).write(out);
                        for value in values {
                            value.write(out);
                        }
                    })*
                }
            }
        }
    };
}

const ARRAY: u32 = 9;

values! {
    U8 0 u8, "an unsigned 8-bit integer";
    I8 1 i8, "a signed 8-bit integer";
    U16 2 u16, "an unsigned 16-bit integer";
    I16 3 i16, "a signed 16-bit integer";
    U32 4 u32, "an unsigned 32-bit integer";
    I32 5 i32, "a signed 32-bit integer";
    F32 6 f32, "a 32-bit float";
    Bool 7 bool, "a truth value";
    String 8 String, "a string";
    U64 10 u64, "an unsigned 64-bit integer";
    I64 11 i64, "a signed 64-bit integer";
    F64 12 f64, "a 64-bit float";
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl Value {
    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The integer of any width, if it is one and not negative.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => value.try_into().ok(),
            Self::U64(value) => value.try_into().ok(),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The integer as a token's id.
    pub fn as_id(&self) -> Option<u32> {
        self.as_usize().and_then(|value| value.try_into().ok())
    }

    /// The float of either width, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The strings, if it is an array of them.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::String(values)) => Some(values),
            _ => None,
        }
    }

    /// The integers, if it is an array of signed 32-bit ones.
    pub fn as_i32s(&self) -> Option<&[i32]> {
        match self {
            Self::Array(Array::I32(values)) => Some(values),
            _ => None,
        }
    }
}

/// Appends a length and the bytes.
pub(super) fn put_str(value: &str, out: &mut Vec<u8>) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}
