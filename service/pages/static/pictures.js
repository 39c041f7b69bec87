// The same validation images in every cell, veiled where tokens were dropped.

import { ask } from "./api.js";

const VEIL = "52, 58, 72";
const BOX = "#ffd24a";
const WIDTH = 440; // pixels of a drawing, twice what it is shown at

export function watchPictures(place) {
  place.addEventListener("click", (event) => {
    if (event.target.id === "pictures-show") begin(place).catch((error) => say(place, error.message));
  });
}

function say(place, text) {
  const note = document.createElement("p");
  note.className = "empty";
  note.textContent = text;
  place.querySelector("#pictures").replaceChildren(note);
}

async function begin(place) {
  const gallery = place.querySelector("#pictures");
  const { base, samples } = gallery.dataset;
  const address = (path) => base + path.split("/").map(encodeURIComponent).join("/");
  const trials = await Promise.all(JSON.parse(samples).map(async ({ trial, path }) => ({
    trial, path, content: await ask(address(`${path}/samples.json`)),
  })));
  const choice = place.querySelector("#pictures-image");
  choice.replaceChildren(...trials[0].content.images.map((image) => new Option(image.image_id)));
  const show = () => {
    gallery.replaceChildren(...trials.flatMap(({ trial, path, content }) => {
      const image = content.images.find((one) => String(one.image_id) === choice.value);
      return image ? [figure(trial, image, content, address(`${path}/${image.file}`))] : [];
    }));
  };
  choice.onchange = show;
  place.querySelector("#pictures-controls").hidden = false;
  place.querySelector("#pictures-show").hidden = true;
  show();
}

function figure(trial, image, content, source) {
  const [height, width] = image.original_size;
  const kept = image.kept_depth.filter((depth) => depth > 0).length / image.kept_depth.length;
  const found = image.detections.labels.length;
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = Math.round((WIDTH * height) / width);
  const text = `${(100 * kept).toFixed(0)} % of tokens kept, ${found} found`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Image ${image.image_id}, ${trial}: ${text}`);
  const picture = new Image();
  picture.onload = () => draw(canvas, picture, image, content);
  picture.src = source;
  const whole = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = `${trial}: ${text}`;
  whole.append(canvas, caption);
  return whole;
}

function draw(canvas, picture, image, content) {
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const [rows, columns] = image.level_shapes[0];
  const [inputHeight, inputWidth] = image.input_size;
  const [across, down] = [canvas.width / inputWidth, canvas.height / inputHeight];
  const side = image.strides[0];
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const depth = image.kept_depth[row * columns + column] / content.num_encoder_layers;
      if (depth >= 1) continue;
      pen.fillStyle = `rgba(${VEIL}, ${(0.82 * (1 - depth)).toFixed(2)})`;
      pen.fillRect(column * side * across, row * side * down, side * across, side * down);
    }
  }
  const [height] = image.original_size;
  const scale = canvas.height / height;
  pen.strokeStyle = pen.fillStyle = BOX;
  pen.lineWidth = 2;
  pen.font = "600 15px system-ui, sans-serif";
  image.detections.boxes_xyxy.forEach(([x1, y1, x2, y2], n) => {
    pen.strokeRect(x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale);
    const name = content.class_names[image.detections.labels[n]] ?? "";
    pen.fillText(name, x1 * scale + 3, Math.max(14, y1 * scale - 4));
  });
}
