// Numbers as text.

/** Four digits, however large or small it is: 0.1250, 177.4, 48,120. */
export function significant(value) {
  return Math.abs(value) >= 9999.5 ? Math.round(value).toLocaleString("en") : value.toPrecision(4);
}
