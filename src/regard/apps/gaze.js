// The gaze over a photo: the same light as in the figures. Keys' cubic between the middles of the
// regions, edges repeated, nothing outside what the encoder saw.
function shares(cells, pixels, start, end) {
  const rows = [];
  for (let pixel = 0; pixel < pixels; pixel++) {
    const at = (pixel + 0.5) / pixels;
    if (at < start || at > end) { rows.push([]); continue; }
    const position = (at - start) / (end - start) * cells - 0.5;
    const row = [];
    for (let step = -1; step < 3; step++) {
      const cell = Math.floor(position) + step, away = Math.abs(position - cell);
      const share = away <= 1 ? (1.5 * away - 2.5) * away ** 2 + 1
        : ((-0.5 * away + 2.5) * away - 4) * away + 2;
      row.push([Math.min(Math.max(cell, 0), cells - 1), share]);
    }
    rows.push(row);
  }
  return rows;
}

// Draws on a canvas of width x height pixels, over a photo; weights are row by row, and seen is
// left, top, right, bottom of what the encoder saw, in parts of the photo.
function light(canvas, width, height, weights, [high, wide], [left, top, right, bottom]) {
  canvas.width = width;
  canvas.height = height;
  const down = shares(high, height, top, bottom), across = shares(wide, width, left, right);
  const map = new Float32Array(width * height);
  let most = 1e-12;
  for (let y = 0; y < height; y++) {
    const line = new Float32Array(wide);
    for (const [cell, share] of down[y])
      for (let x = 0; x < wide; x++) line[x] += share * weights[cell * wide + x];
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (const [cell, share] of across[x]) sum += share * line[cell];
      map[y * width + x] = Math.max(sum, 0);
      most = Math.max(most, sum);
    }
  }
  // The photo under a grey of this opacity is the photo times (0.16 + 0.84 light), lifted by
  // 0.22 light² towards white: the dark keeps some shape, and black things do not stay black.
  const drawing = canvas.getContext("2d"), image = drawing.createImageData(width, height);
  map.forEach((value, i) => {
    const lit = value / most, lift = 0.22 * lit ** 2, cover = 0.84 * (1 - lit) + lift;
    image.data.fill(255 * lift / cover, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255 * cover;
  });
  drawing.putImageData(image, 0, 0);
}
