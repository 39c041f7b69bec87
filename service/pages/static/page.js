// What every page that follows the service does: fresh, with times and actions.

import { watchActions } from "./actions.js";
import { follow } from "./live.js";
import { watchTimes } from "./times.js";

watchTimes();
watchActions();
follow();
