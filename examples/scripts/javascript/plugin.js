// A plugin in JavaScript: clusters of services whose key begins with a prefix get the fields of the configuration.
import { json as configuration } from 'trysail:stage/configuration@0.2.0';

export const clusters = {
  apply(target) {
    const { prefix, merge } = JSON.parse(configuration());
    const edits = target.service.startsWith(prefix)
      ? [{ tag: 'merge', val: { item: '', path: '', value: JSON.stringify(merge) } }]
      : [];
    return { edits, diagnostics: [] };
  },
};
